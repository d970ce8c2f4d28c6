//! Files of the released sizes with random numbers in them, for proofs of memory and speed. None of this runs by itself:
//!
//! ```text
//! REEL_FULL_SIZE=/some/folder cargo test --release --test all -- --ignored full_size::ltx_2b       # 6.3 GB
//! REEL_FULL_SIZE=/some/folder cargo test --release --test all -- --ignored full_size::ltx_13b      # 7.5 GB and a VAE of 2.5 GB
//! REEL_FULL_SIZE=/some/folder cargo test --release --test all -- --ignored full_size::t5_xxl       # 3.9 GB
//! ```

use candle_core::{DType, Device, Result, Shape, Tensor};
use half::bf16;
use reel::models::ltx::config::{TransformerConfig, VaeConfig};
use reel::models::ltx::names;
use reel::models::ltx::transformer::Transformer;
use reel::models::ltx::vae::{self, Decoder, Encoder};
use reel::models::random;
use reel::models::text::t5::{T5, T5Config};
use reel::nn::kernel::blocks::QuantType;
use reel::nn::vars::{Source, Vars};
use reel::platform::files::AtomicFile;
use reel::sampling::noise::Noise;
use reel::weights::entry::Type;
use reel::weights::gguf::{self, Part};
use reel::weights::rules::Rules;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Numbers that are repeated all over, and their deviation.
const TILE: usize = 1 << 20;
const DEVIATION: f32 = 0.02;

type Shapes = BTreeMap<String, Vec<usize>>;

/// Writes down what a constructor asks for.
struct Recorder(Arc<Mutex<Shapes>>);

impl Source for Recorder {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.lock().unwrap().insert(name.to_string(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

fn shapes<T>(build: impl FnOnce(Vars) -> Result<T>) -> Shapes {
    let shapes = Arc::new(Mutex::new(BTreeMap::new()));
    build(Vars::new(Recorder(shapes.clone()), DType::F32, Device::Cpu)).unwrap();
    shapes.lock().unwrap().clone()
}

fn size(name: &str) -> Value {
    reel::models::sizes().into_iter().find(|size| size.name == name).unwrap().config
}

fn transformer(config: &Value) -> Shapes {
    let config = TransformerConfig::parse(config, "transformer").unwrap();
    shapes(|vb| Transformer::load(&config, vb))
}

fn vae(json: &Value) -> Shapes {
    let config = VaeConfig::parse(json, "vae").unwrap();
    let all = shapes(|vb| {
        vae::statistics(&config, vb.clone())?;
        Encoder::load(&config, vb.pp("encoder"))?;
        Decoder::load(&config, vb.pp("decoder"))
    });
    let official = |(name, shape): (String, Vec<usize>)| (names::vae_to_official(&name, &config), shape);
    all.into_iter().map(official).collect()
}

fn folder() -> PathBuf {
    let folder = PathBuf::from(std::env::var("REEL_FULL_SIZE").expect("REEL_FULL_SIZE names a folder"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Random numbers about the value that a tensor of that name and rank has, repeated.
struct Tiles {
    weights: Vec<f32>,
    factors: Vec<f32>,
}

impl Tiles {
    fn new() -> Self {
        let weights: Vec<f32> = Noise::new(0).normal(TILE).into_iter().map(|x| x * DEVIATION).collect();
        Self { factors: weights.iter().map(|x| 1.0 + x).collect(), weights }
    }

    fn of(&self, name: &str, shape: &[usize]) -> &[f32] {
        let factor = ["norm.weight", "norm_", "_norm", "std-of-means"].iter().any(|part| name.contains(part));
        if shape.len() == 1 && factor && !name.ends_with("bias") { &self.factors } else { &self.weights }
    }

    fn bf16(&self, name: &str, shape: &[usize]) -> Vec<u8> {
        if shape.is_empty() {
            return bf16::from_f32(1000.0).to_le_bytes().to_vec(); // a decoder's timestep is in thousandths
        }
        self.of(name, shape).iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
    }

    fn f32(&self, name: &str, shape: &[usize]) -> Vec<u8> {
        self.of(name, shape).iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// `count` bytes of a tile, repeated.
fn repeat(mut count: usize, tile: &[u8], to: &mut dyn Write) {
    while count > 0 {
        let part = count.min(tile.len());
        to.write_all(&tile[..part]).unwrap();
        count -= part;
    }
}

/// A safetensors file of bf16.
fn safetensors(path: PathBuf, shapes: &Shapes, config: Option<Value>) {
    let mut header = Map::new();
    if let Some(config) = config {
        header.insert("__metadata__".into(), json!({"config": config.to_string()}));
    }
    let mut end = 0;
    for (name, shape) in shapes {
        let bytes = 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let tiles = Tiles::new();
    for (name, shape) in shapes {
        repeat(2 * shape.iter().product::<usize>(), &tiles.bf16(name, shape), &mut file);
    }
    file.into_inner().unwrap().sync_all().unwrap();
    println!("{}: {:.2} GB", path.display(), (8 + header.len() + end) as f64 / 1e9);
}

/// A GGUF file: the layers' matrices (and T5's embedding) in blocks, the rest f32.
fn blocks(
    path: PathBuf,
    architecture: &str,
    (kind, rules): (QuantType, &Rules),
    shapes: &Shapes,
    rename: impl Fn(&str) -> String,
) {
    let dtype = |name: &str, shape: &[usize]| match shape {
        [_, row] if row % kind.values() == 0 && (rules.is_layer(name) || rules.tables.contains(&name)) => {
            Type::QuantType(kind)
        }
        _ => Type::Plain(Dtype::F32),
    };
    let parts: Vec<Part> = shapes
        .iter()
        .map(|(name, shape)| Part { name: rename(name), dtype: dtype(name, shape), shape: shape.clone() })
        .collect();
    let tile = random::blocks(kind, TILE);
    let tiles = Tiles::new();
    let file = AtomicFile::create(&path, true).unwrap();
    gguf::write(&file, &[("general.architecture", architecture)], &parts, |i, to| {
        let Part { name, dtype, shape } = &parts[i];
        let count = shape.iter().product::<usize>();
        match dtype {
            Type::QuantType(kind) => repeat(kind.size(count), &tile, to),
            Type::Plain(_) => repeat(4 * count, &tiles.f32(name, shape), to),
        }
        Ok(())
    })
    .unwrap();
    file.commit().unwrap();
    println!("{}: {:.2} GB", path.display(), std::fs::metadata(&path).unwrap().len() as f64 / 1e9);
}

const DISTILLED: [f64; 8] = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219];

#[test]
#[ignore = "writes 6.3 GB: REEL_FULL_SIZE=DIR cargo test --release --test all -- --ignored full_size::ltx_2b"]
fn ltx_2b() {
    let (config, vae_config) = (size("2b"), size("vae-0.9.5"));
    let named = |(name, shape): (String, Vec<usize>)| {
        (format!("{}{}", names::TRANSFORMER_PREFIX, names::transformer_to_official(&name)), shape)
    };
    let mut all: Shapes = transformer(&config).into_iter().map(named).collect();
    all.extend(vae(&vae_config).into_iter().map(|(name, shape)| (format!("{}{name}", names::VAE_PREFIX), shape)));
    let config = json!({"transformer": config, "vae": vae_config, "allowed_inference_steps": DISTILLED});
    safetensors(folder().join("ltx-2b-random.safetensors"), &all, Some(config));
}

#[test]
#[ignore = "writes 10 GB: REEL_FULL_SIZE=DIR cargo test --release --test all -- --ignored full_size::ltx_13b"]
fn ltx_13b() {
    let folder = folder();
    let all = transformer(&size("13b"));
    blocks(
        folder.join("ltx-13b-distilled-random-Q4_K.gguf"),
        "ltxv",
        (QuantType::Q4K, &names::QUANTISING),
        &all,
        names::transformer_to_official,
    );
    safetensors(folder.join("vae-random.safetensors"), &vae(&size("vae-0.9.5")), None);
}

#[test]
#[ignore = "writes 3.9 GB: REEL_FULL_SIZE=DIR cargo test --release --test all -- --ignored full_size::t5_xxl"]
fn t5_xxl() {
    let config = T5Config::parse(&size("t5-xxl"), "t5").unwrap();
    let all = shapes(|vb| T5::load(&config, vb)?.touch());
    blocks(
        folder().join("t5-xxl-random-Q6_K.gguf"),
        "t5encoder",
        (QuantType::Q6K, &reel::models::text::names::QUANTISING),
        &all,
        reel::models::text::names::to_llama,
    );
}
