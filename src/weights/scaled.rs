//! Weights that are stored beside scales: fp8 matrices whose numbers mean something only once they are multiplied by one factor,
//! or by one for each row. They are multiplied as they are read, and so become bf16.
//!
//! ComfyUI writes them in two forms. Older files name the factor of `X.weight` `X.scale_weight` and hold an empty tensor
//! `scaled_fp8`; newer ones name it `X.weight_scale` and say the format in `X.comfy_quant`, as JSON. `scale_input` and
//! `input_scale` scale activations to fp8, for products of fp8 with fp8: there are none here, so they change nothing.
//! - Source: ComfyUI `comfy/ops.py`, `scaled_fp8_ops` and `mixed_precision_ops`, at 0.3.76.

use super::entry::{Entry, Raw, Type};
use crate::nn::matrix::Kind;
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the scale of `X.weight` is called, after `X.`.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
/// What goes with a scale and needs no reading.
const BESIDE: [&str; 3] = ["scale_input", "input_scale", FORMAT];
/// The tensor of JSON bytes that says a layer's format, and the one format that scales are read of.
const FORMAT: &str = "comfy_quant";
const E4M3: &str = "float8_e4m3fn";
/// The marker of the older form.
const MARKER: &str = "scaled_fp8";

/// Values that one task reads.
const TASK: usize = 1 << 16;

/// Gives every weight the scales that are stored beside it, and takes these out of the list. What is not understood stays in the
/// list, where [`super::forms::unread`] finds it.
pub(super) fn attach(entries: &mut BTreeMap<String, Entry>) {
    let ends = |name: &str| name.rsplit('.').next().is_some_and(|end| SCALES.contains(&end));
    let found: Vec<String> = entries.keys().filter(|name| ends(name)).cloned().collect();
    for name in found {
        let module = name[..name.rfind('.').map_or(0, |dot| dot + 1)].to_string();
        let understood = entries.get(&format!("{module}{FORMAT}")).is_none_or(|entry| format_of(entry) == E4M3);
        let scales = entries.get(&format!("{module}weight")).and_then(|weight| factors(&entries[&name], weight));
        let (true, Some(scales)) = (understood, scales) else { continue };
        if let Some(weight) = entries.get_mut(&format!("{module}weight"))
            && weight.scales.is_none()
        {
            weight.scales = Some(scales);
            entries.remove(&name);
            BESIDE.iter().for_each(|end| _ = entries.remove(&format!("{module}{end}")));
        }
    }
    entries.retain(|name, _| name.rsplit('.').next() != Some(MARKER));
}

/// The factors of a weight that can be multiplied: finite, and as many as it has rows, or one.
fn factors(scale: &Entry, weight: &Entry) -> Option<Arc<[f32]>> {
    let plain = |entry: &Entry| match entry.dtype.kind() {
        Some(Kind::Plain(dtype)) => Some(dtype),
        _ => None,
    };
    plain(weight).filter(|_| !weight.shape.is_empty())?;
    let dtype = plain(scale).filter(|dtype| matches!(dtype, DType::F32 | DType::BF16 | DType::F16))?;
    let count: usize = scale.shape.iter().product();
    let by_row = scale.shape.first() == weight.shape.first() && Some(&count) == weight.shape.first();
    let values = (count == 1 || by_row).then(|| widened(dtype, scale.raw().bytes).ok())??;
    values.iter().all(|x| x.is_finite()).then(|| values.into())
}

/// The format that a layer's `comfy_quant` names.
pub(super) fn format_of(entry: &Entry) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(entry.raw().bytes).ok();
    json.and_then(|json| Some(json.get("format")?.as_str()?.to_string())).unwrap_or("unknown".to_string())
}

/// The type that a tensor's numbers have once they are read: scaled ones are bf16 by then.
pub(super) fn read_type(entry: &Entry) -> Type {
    if entry.scales.is_some() { Type::Plain(Dtype::BF16) } else { entry.dtype }
}

/// Numbers of one type as f32.
pub(super) fn widened(dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    let count = bytes.len() / dtype.size_in_bytes();
    Tensor::from_raw_buffer(bytes, dtype, &[count], &Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()
}

/// Hands out a tensor's numbers as f32, multiplied by its scales, in parts that are made beside each other.
/// - `unit`: values that stay together. `out`: as many parts of `per_unit` elements as there are units.
pub(super) fn read_into<T: Send>(
    raw: &Raw,
    unit: usize,
    out: &mut [T],
    per_unit: usize,
    write: impl Fn(&[f32], &mut [T]) + Sync,
) -> Result<()> {
    let Some(Kind::Plain(dtype)) = raw.dtype.kind() else { bail!("numbers of {}", raw.dtype) };
    let (size, units) = (dtype.size_in_bytes(), (TASK / unit.max(1)).max(1));
    let row = raw.shape.iter().skip(1).product::<usize>().max(1);
    out.par_chunks_mut((units * per_unit).max(1)).enumerate().try_for_each(|(task, out)| {
        let first = task * units * unit;
        let count = out.len() / per_unit.max(1) * unit;
        let mut values = widened(dtype, &raw.bytes[first * size..(first + count) * size])?;
        match raw.scales {
            Some([one]) => values.iter_mut().for_each(|x| *x *= one),
            Some(each) => values.iter_mut().enumerate().for_each(|(i, x)| *x *= each[(first + i) / row]),
            None => {}
        }
        write(&values, out);
        Ok(())
    })
}

/// A tensor of numbers, multiplied by its scales: in bf16, or in f32 where that is wanted.
pub(super) fn tensor(raw: &Raw, dtype: DType) -> Result<Tensor> {
    let count = raw.shape.iter().product();
    if dtype == DType::BF16 {
        return Tensor::from_vec(halves(raw)?, raw.shape, &Device::Cpu);
    }
    let mut values = vec![0f32; count];
    read_into(raw, 1, &mut values, 1, |from, to| to.copy_from_slice(from))?;
    Tensor::from_vec(values, raw.shape, &Device::Cpu)?.to_dtype(dtype)
}

/// A tensor's numbers in bf16, multiplied by its scales.
pub(super) fn halves(raw: &Raw) -> Result<Vec<bf16>> {
    let mut values = vec![bf16::ZERO; raw.shape.iter().product()];
    read_into(raw, 1, &mut values, 1, |from, to| {
        from.iter().zip(to).for_each(|(from, to)| *to = bf16::from_f32(*from));
    })?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernel::blocks::QuantType;
    use crate::platform::files::AtomicFile;
    use crate::weights::open::Tensors;
    use crate::weights::rules::{GgufForm, Rules};
    use safetensors::tensor::TensorView;
    use std::path::PathBuf;

    const LAYER: &str = "layers.0.q";
    const RULES: Rules = Rules { layers: "layers.", not: &[], fine: &[], int8: true, tables: &[] };

    type Part<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

    fn file(name: &str, parts: &[Part]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("reel-scaled-{}-{name}.safetensors", std::process::id()));
        let views = parts.iter().map(|(name, dtype, shape, bytes)| {
            let name = if name.contains('.') { name.to_string() } else { format!("{LAYER}.{name}") };
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    }

    fn opened(name: &str, parts: &[Part]) -> Tensors {
        let path = file(name, parts);
        let tensors = Tensors::open(std::slice::from_ref(&path)).unwrap();
        std::fs::remove_file(path).unwrap(); // what is mapped stays
        tensors
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// The number that e4m3 means by a byte that is not NaN.
    fn e4m3(byte: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let size = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
        if byte < 128 { size } else { -size }
    }

    const ROWS: usize = 6;
    const WIDTH: usize = 256;

    fn bytes() -> Vec<u8> {
        (0..ROWS * WIDTH).map(|i| (i * 37 % 256) as u8).map(|byte| if byte & 127 == 127 { 3 } else { byte }).collect()
    }

    /// Both forms, one factor and one for each row, in every type that they come in.
    #[test]
    fn weights_are_multiplied_by_their_scales() {
        let one = vec![0.37f32];
        let each: Vec<f32> = (1..=ROWS).map(|i| 0.11 * i as f32).collect();
        let format = br#"{"format": "float8_e4m3fn"}"#.to_vec();
        let marker: Part = ("model.scaled_fp8", Dtype::F8_E4M3, vec![2], vec![0; 2]);
        let weight: Part = ("weight", Dtype::F8_E4M3, vec![ROWS, WIDTH], bytes());
        let cases: [(&str, Vec<Part>, &[f32]); 4] = [
            ("older", vec![("scale_weight", Dtype::F32, vec![1], floats(&one)), marker], &one),
            (
                "newer",
                vec![
                    ("weight_scale", Dtype::F32, vec![], floats(&one)),
                    ("input_scale", Dtype::F32, vec![], floats(&[9.0])),
                    ("comfy_quant", Dtype::U8, vec![format.len()], format),
                ],
                &one,
            ),
            ("rows", vec![("weight_scale", Dtype::F32, vec![ROWS, 1], floats(&each))], &each),
            ("flat", vec![("weight_scale", Dtype::F32, vec![ROWS], floats(&each))], &each),
        ];
        for (name, beside, scales) in cases {
            let tensors = opened(name, &[vec![weight.clone()], beside].concat());
            assert_eq!(tensors.names().collect::<Vec<_>>(), [format!("{LAYER}.weight")], "{name}");
            tensors.check_form().unwrap();
            let want: Vec<f32> =
                bytes().iter().enumerate().map(|(i, b)| e4m3(*b) * scales[i / WIDTH % scales.len()]).collect();
            let read = |stored: DType| {
                let vars = tensors.load(Some(stored), DType::F32, &Device::Cpu);
                let x = vars.get((ROWS, WIDTH), &format!("{LAYER}.weight")).unwrap();
                assert_eq!(x.dtype(), stored);
                x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(read(DType::F32), want, "{name}");
            let halves: Vec<f32> = want.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            assert_eq!(read(DType::BF16), halves, "{name}");
            // and what is quantised are these numbers too
            let plain = opened(name, &[("weight", Dtype::F32, vec![ROWS, WIDTH], floats(&want))]);
            let blocks = |tensors: Tensors| {
                let vars = tensors.quantized(Some(QuantType::Q8_0), &RULES).load(None, DType::F32, &Device::Cpu);
                let matrix = vars.matrix(ROWS, WIDTH, &format!("{LAYER}.weight")).unwrap();
                assert_eq!(matrix.kind(), Kind::QuantType(QuantType::Q8_0));
                matrix.tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(blocks(tensors), blocks(plain), "{name}");
        }
    }

    /// Plain fp8 is quantised too, and written to a GGUF file as what that has.
    #[test]
    fn fp8_is_quantised() {
        let norm: Part = ("norm_q.weight", Dtype::F8_E4M3, vec![WIDTH], bytes()[..WIDTH].to_vec());
        let tensors = opened("plain", &[("weight", Dtype::F8_E4M3, vec![ROWS, WIDTH], bytes()), norm]);
        let tensors = tensors.quantized(Some(QuantType::Q8_0), &RULES);
        assert_eq!(tensors.quantized_count(), 1);
        let form =
            GgufForm { architecture: "any", config: String::new(), rename: str::to_string, back: str::to_string };
        let path = std::env::temp_dir().join(format!("reel-scaled-{}.gguf", std::process::id()));
        let file = AtomicFile::create(&path, true).unwrap();
        tensors.write_gguf(&file, &form, || Ok(())).unwrap();
        file.commit().unwrap();
        let written = Tensors::open(std::slice::from_ref(&path)).unwrap();
        std::fs::remove_file(path).unwrap();
        let norm = written.load(None, DType::F32, &Device::Cpu).get(WIDTH, "norm_q.weight").unwrap();
        let want: Vec<f32> = bytes()[..WIDTH].iter().map(|b| e4m3(*b)).collect();
        assert_eq!(norm.to_vec1::<f32>().unwrap(), want);
        assert_eq!(written.quantized_count(), 0);
    }
}
