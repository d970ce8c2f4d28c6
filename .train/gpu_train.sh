#!/bin/bash
# ./gpu_train.sh SECONDS [options of recipe/gpu_train.py]; results in $OUT (or ./out)
cd "$(dirname "$0")" && export PYTHONUNBUFFERED=1 OUT="${OUT:-$PWD/out}" && mkdir -p "$OUT"
exec python3 recipe/gpu_train.py --packed state --out "$OUT" "$@"
