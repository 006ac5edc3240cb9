//! How much memory a model's KV cache takes, read off its config.json.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::memory::Memory;
use super::{Finding, Grade};
use kvcache_core::byte_size::ByteSize;

/// Why a model cannot be sized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("cannot read {}: {source}; pass the folder that holds the model's config.json", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not JSON: {source}; fetch the file again", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{} has no {field}, without which the bytes of a token are unknown: add it", path.display())]
    Missing { path: PathBuf, field: &'static str },
    #[error("{} has {field} = {value}, which is not {expected}: correct it", path.display())]
    Value { path: PathBuf, field: &'static str, value: String, expected: &'static str },
}

/// What of a model decides about its KV cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Model {
    name: String,
    /// Layers with a KV cache that grows with the tokens.
    layers: u64,
    /// Those of them that keep a window only.
    windowed_layers: u64,
    /// Bytes of one token in one layer.
    layer_bytes: u64,
    attention: String,
    dtype: String,
    context_tokens: Option<u64>,
    block_tokens: u64,
}

impl Model {
    fn token_bytes(&self) -> u64 {
        self.layers * self.layer_bytes
    }

    /// As the connector chooses it: enough of the engine's blocks to make one layer's part 64 KiB.
    fn slot_blocks(&self) -> u64 {
        PIECE_BYTES.div_ceil(self.layer_bytes * self.block_tokens)
    }
}

pub(super) fn read(folder: &Path, block_tokens: u32) -> Result<Model, ModelError> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    let name = folder
        .file_name()
        .map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned());
    parse(&text, &path, name, block_tokens)
}

fn parse(text: &str, path: &Path, name: String, block_tokens: u32) -> Result<Model, ModelError> {
    let json: Value =
        serde_json::from_str(text).map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    // Models that see or hear keep their language model's configuration inside.
    let config =
        Config { json: json.get("text_config").filter(|inner| inner.is_object()).unwrap_or(&json), path };
    let hidden_layers = config.required("num_hidden_layers")?;
    let (windowed_layers, other_layers) = config.layer_kinds();
    let outer = Config { json: &json, path };
    let dtype = config.dtype().or_else(|| outer.dtype()).unwrap_or("bfloat16");
    let item_bytes = match dtype.trim_start_matches("torch.") {
        "float32" | "float" => 4,
        "float16" | "bfloat16" | "half" => 2,
        name if name.starts_with("float8") || name.starts_with("fp8") => 1,
        other => {
            return Err(ModelError::Value {
                path: path.to_owned(),
                field: "torch_dtype",
                value: other.to_owned(),
                expected: "float32, float16, bfloat16 or float8",
            });
        }
    };
    let (items, attention) = match config.optional("kv_lora_rank")? {
        Some(latent) => {
            let rope = config.optional("qk_rope_head_dim")?.unwrap_or(0);
            (latent + rope, format!("latent attention of {latent} + {rope}"))
        }
        None => {
            let heads = config.required("num_attention_heads")?;
            let kv_heads = config.optional("num_key_value_heads")?.unwrap_or(heads);
            let head_dim = match config.optional("head_dim")? {
                Some(head_dim) => head_dim,
                None => config.required("hidden_size")? / heads,
            };
            (2 * kv_heads * head_dim, format!("{kv_heads} KV heads of {head_dim}"))
        }
    };
    // A product of three numbers from a file: each is at most NUMBER_MAX, so that it fits.
    Ok(Model {
        name,
        layers: hidden_layers.saturating_sub(other_layers).max(1),
        windowed_layers,
        layer_bytes: (items * item_bytes).max(1),
        attention,
        dtype: dtype.to_owned(),
        context_tokens: config.optional("max_position_embeddings")?,
        block_tokens: u64::from(block_tokens),
    })
}

struct Config<'a> {
    json: &'a Value,
    path: &'a Path,
}

impl Config<'_> {
    fn optional(&self, field: &'static str) -> Result<Option<u64>, ModelError> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (1..=NUMBER_MAX).contains(&number) => Ok(Some(number)),
                _ => Err(ModelError::Value {
                    path: self.path.to_owned(),
                    field,
                    value: value.to_string(),
                    expected: "a whole number from 1 to 16777216",
                }),
            },
        }
    }

    fn required(&self, field: &'static str) -> Result<u64, ModelError> {
        self.optional(field)?.ok_or_else(|| ModelError::Missing { path: self.path.to_owned(), field })
    }

    fn dtype(&self) -> Option<&str> {
        ["torch_dtype", "dtype"].into_iter().find_map(|field| self.json.get(field)?.as_str())
    }

    /// Layers that keep a window, and layers that keep something else than keys and values of tokens.
    fn layer_kinds(&self) -> (u64, u64) {
        let kinds = self.json.get("layer_types").and_then(Value::as_array);
        let kinds: Vec<&str> = kinds.into_iter().flatten().filter_map(Value::as_str).collect();
        let count = |wanted: fn(&str) -> bool| kinds.iter().filter(|kind| wanted(kind)).count() as u64;
        let windowed = |kind: &str| kind.contains("sliding") || kind.contains("chunked");
        (count(windowed), count(|kind| !kind.contains("attention") || kind.contains("linear")))
    }
}

pub(super) fn sizing(model: &Model, capacity: Option<ByteSize>, memory: &Memory) -> Finding {
    let token_bytes = model.token_bytes();
    let slot_blocks = model.slot_blocks();
    let slot_tokens = slot_blocks * model.block_tokens;
    let slot_bytes = slot_tokens * token_bytes;
    // Half of what is free: the other half is for the engine itself, whose weights may be in host memory while it
    // starts, and for files that it reads.
    let suggested = memory.free_bytes().map(|free| free / 2 / slot_bytes * slot_bytes);
    let capacity_bytes = capacity.map(|capacity| capacity.0).or(suggested).unwrap_or(0);
    let slots = capacity_bytes / slot_bytes;
    let tokens = slots * slot_tokens;
    let mut found = format!(
        "{}: {} layers, {}, {}: {} of KV a token",
        model.name,
        model.layers,
        model.attention,
        model.dtype,
        ByteSize(token_bytes)
    );
    if model.windowed_layers > 0 {
        found += &format!(" ({} layers keep a window only, and less)", model.windowed_layers);
    }
    found += &format!(
        "\na slot is {slot_blocks} blocks of {} tokens, {}\n{} {}: {tokens} tokens",
        model.block_tokens,
        ByteSize(slot_bytes),
        if capacity.is_some() { "capacity" } else { "suggested capacity: half of the free memory," },
        ByteSize(capacity_bytes),
    );
    if let Some(context) = model.context_tokens {
        found += &format!(
            ", {:.1} prompts of the model's full context of {context}",
            tokens as f64 / context as f64
        );
    }
    let finding = if slots == 0 {
        let remedy = format!("set a capacity of at least {} (one slot)", ByteSize(slot_bytes));
        Finding { grade: Grade::Unusable, ..Finding::degraded("model", found, remedy) }
    } else if model.context_tokens.is_some_and(|context| tokens < context) {
        Finding::degraded(
            "model",
            found,
            "not even one full prompt fits: give L1 more memory, or use an fp8 KV cache",
        )
    } else {
        Finding::fine("model", found)
    };
    finding
        .with("token_bytes", token_bytes)
        .with("slot_blocks", slot_blocks)
        .with("slot_bytes", slot_bytes)
        .with("capacity_bytes", capacity_bytes)
        .with("capacity_tokens", tokens)
        .with("suggested_capacity_bytes", suggested.map_or(Value::Null, Value::from))
}

/// One layer's part of a slot is at least this, since shorter pieces are copied below the memory's speed.
const PIECE_BYTES: u64 = 64 << 10;

/// No field of a model is larger; products of three stay within 64 bits.
const NUMBER_MAX: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "hidden_size": 4096, "torch_dtype": "bfloat16", "max_position_embeddings": 131072}"#;

    fn model(text: &str) -> Result<Model, ModelError> {
        parse(text, Path::new("m/config.json"), "m".to_owned(), 16)
    }

    fn free(bytes: u64) -> Memory {
        Memory { available_bytes: Some(bytes), ..Memory::default() }
    }

    #[test]
    fn grouped_heads_are_sized_as_documented() {
        let llama = model(LLAMA).unwrap();
        assert_eq!(llama.token_bytes(), 128 << 10);
        assert_eq!(llama.slot_blocks(), 1);
        let finding = sizing(&llama, Some(ByteSize(32 << 30)), &free(64 << 30));
        assert_eq!(finding.grade, Grade::Fine);
        assert_eq!(finding.values["capacity_tokens"], 262_144);
        assert_eq!(finding.values["suggested_capacity_bytes"], 32_u64 << 30);
        assert_eq!(
            finding.found,
            "m: 32 layers, 8 KV heads of 128, bfloat16: 128 KiB of KV a token\n\
             a slot is 1 blocks of 16 tokens, 2 MiB\n\
             capacity 32 GiB: 262144 tokens, 2.0 prompts of the model's full context of 131072"
        );
    }

    #[test]
    fn other_attentions_and_dtypes_are_sized() {
        let mla = r#"{"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "dtype": "float8_e4m3fn"}"#;
        assert_eq!(model(mla).unwrap().token_bytes(), 61 * 576);
        assert_eq!(model(mla).unwrap().slot_blocks(), 8);
        let heads = r#"{"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 64, "torch_dtype": "torch.float32"}"#;
        assert_eq!(model(heads).unwrap().token_bytes(), 2 * 2 * 4 * 64 * 4);
        let nested = format!(r#"{{"torch_dtype": "float16", "text_config": {LLAMA}}}"#);
        assert_eq!(model(&nested).unwrap().token_bytes(), 128 << 10);
        let hybrid = r#"{"num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64,
            "layer_types": ["sliding_attention", "linear_attention", "full_attention", "mamba"]}"#;
        let hybrid = model(hybrid).unwrap();
        assert_eq!((hybrid.layers, hybrid.windowed_layers), (2, 1));
        assert!(sizing(&hybrid, None, &free(1 << 30)).found.contains("1 layers keep a window"));
    }

    #[test]
    fn broken_configurations_name_file_value_and_remedy() {
        for (text, expected) in [
            (
                "{",
                "m/config.json is not JSON: EOF while parsing an object at line 1 column 1; fetch the file again",
            ),
            (
                "[]",
                "m/config.json has no num_hidden_layers, without which the bytes of a token are unknown: add it",
            ),
            (
                r#"{"num_hidden_layers": -3}"#,
                "m/config.json has num_hidden_layers = -3, which is not a whole number from 1 to 16777216: correct it",
            ),
            (
                r#"{"num_hidden_layers": 1, "num_attention_heads": 0}"#,
                "m/config.json has num_attention_heads = 0, which is not a whole number from 1 to 16777216: correct it",
            ),
            (
                r#"{"num_hidden_layers": 1, "num_attention_heads": 4}"#,
                "m/config.json has no hidden_size, without which the bytes of a token are unknown: add it",
            ),
            (
                r#"{"num_hidden_layers": 1, "torch_dtype": "int3"}"#,
                "m/config.json has torch_dtype = int3, which is not float32, float16, bfloat16 or float8: correct it",
            ),
        ] {
            assert_eq!(model(text).unwrap_err().to_string(), expected);
        }
        let error = read(Path::new("/no/such/model"), 16).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /no/such/model/config.json: "), "{error}");
        assert!(error.ends_with("pass the folder that holds the model's config.json"), "{error}");
    }

    #[test]
    fn too_little_memory_is_said() {
        let llama = model(LLAMA).unwrap();
        assert_eq!(sizing(&llama, Some(ByteSize(1 << 20)), &free(1 << 30)).grade, Grade::Unusable);
        assert_eq!(sizing(&llama, None, &free(8 << 30)).grade, Grade::Degraded);
        assert_eq!(sizing(&llama, None, &Memory::default()).grade, Grade::Unusable);
    }
}
