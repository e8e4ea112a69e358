//! Foreign weights: what comes in goes out again bit for bit, and what is wrong is said in one error.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hymba_plus::{
    model::{BuildOptions, Model},
    registry::Component,
    weights::{ExportOptions, Foreign, ImportOptions, TokenIds, WeightsError, export, plan_of},
};
use hymba_tests::{official, read_safetensors};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

/// Folders with a model of each format, as their own libraries wrote them.
fn folders() -> Vec<(String, tempfile::TempDir)> {
    let transformers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/transformers");
    let mut folders = Vec::new();
    for name in ["llama", "llama3_tied", "mamba", "mistral", "jamba", "mamba2", "xlstm", "mixtral"] {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(transformers.join(name).join(file), folder.path().join(file)).unwrap();
        }
        folders.push((name.to_owned(), folder));
    }
    for name in ["base", "kqnorm"] {
        let folder = tempfile::tempdir().unwrap();
        official::lay_out(name, folder.path());
        folders.push((format!("hymba {name}"), folder));
    }
    folders
}

fn open(folder: &Path) -> Foreign {
    Foreign::open(folder, &ImportOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(folder: &Path) -> String {
    Foreign::open(folder, &ImportOptions::default()).map(|_| ()).unwrap_err().to_string()
}

fn model(foreign: &Foreign, kind: Kind) -> Model {
    foreign.model(BuildOptions { kind, ..BuildOptions::default() }).unwrap()
}

/// Every tensor of every safetensors file of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            all.extend(read_safetensors(&path));
        }
    }
    all
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    torch_bridge::tensors::to_bytes(tensor).unwrap()
}

fn config(folder: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn write_config(folder: &Path, config: &Map<String, Value>) {
    std::fs::write(folder.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
}

fn write_tensors(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
    let tensors: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    training::checkpoint::write_tensors(&folder.join("model.safetensors"), &tensors).unwrap();
}

fn assert_equal_models(name: &str, a: &Model, b: &Model) {
    assert_eq!(a.parameters().len(), b.parameters().len());
    for (a, b) in a.parameters().iter().zip(b.parameters()) {
        assert_eq!(a.plan.name, b.plan.name, "{name}");
        assert_eq!(bytes(&a.tensor), bytes(&b.tensor), "{name}: {}", a.plan.name);
    }
}

#[test]
fn what_comes_in_goes_out_bit_for_bit() {
    for (name, folder) in folders() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let input = tempfile::tempdir().unwrap();
            let cast: BTreeMap<_, _> = tensors(folder.path())
                .into_iter()
                .map(|(name, tensor)| (name, tensor.to_kind(kind)))
                .collect();
            write_tensors(input.path(), &cast);
            write_config(input.path(), &config(folder.path()));
            let foreign = open(input.path());
            assert_eq!(foreign.dtype(), if kind == Kind::Float { "float32" } else { "bfloat16" });
            // A run keeps its weights in 32 bits, whatever the files were in.
            let first = model(&foreign, Kind::Float);
            let out = tempfile::tempdir().unwrap();
            let options = ExportOptions {
                format: Some(foreign.format.clone()),
                kind: Some(kind),
                max_shard_bytes: 10_000,
                tokens: TokenIds { bos: Some(1), eos: vec![2, 5], pad: None },
                files: vec![("tokenizer.json".to_owned(), b"{}".to_vec())],
            };
            let exported = export(&first, &out.path().join("new"), &options).unwrap();
            let out = out.path().join("new");
            assert!(exported.files.len() > 2, "{name}: {exported:?}");
            assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), b"{}");
            let mut written = tensors(&out);
            for (tensor, value) in &cast {
                let back =
                    written.remove(tensor).unwrap_or_else(|| panic!("{name}: {tensor} was not written"));
                assert_eq!((back.kind(), back.size()), (kind, value.size()), "{name}: {tensor}");
                let idle =
                    tensor.ends_with("k_norm.weight") && back.numel() > 0 && bytes(&back) != bytes(value);
                // What no layer reads is not kept.
                assert!(!idle || is_unused_key_norm(tensor), "{name}: {tensor} differs");
            }
            assert!(written.is_empty(), "{name}: written besides: {written:?}");
            let again = open(&out);
            assert_eq!(again.model_section, foreign.model_section, "{name}");
            assert_equal_models(&name, &first, &model(&again, Kind::Float));
            let keys = config(&out);
            assert_eq!(keys["eos_token_id"], json!([2, 5]));
            assert_eq!(keys["pad_token_id"], Value::Null);
        }
    }
}

/// Layers 2 and 4 of the fixture read the keys of 1 and 3.
fn is_unused_key_norm(name: &str) -> bool {
    ["2", "4"].iter().any(|layer| name == format!("model.layers.{layer}.mamba.self_attn.k_norm.weight"))
}

#[test]
fn a_renamed_a_missing_and_a_misshapen_tensor_are_one_error() {
    for (name, folder) in folders() {
        let mut weights = tensors(folder.path());
        let names: Vec<String> = weights.keys().filter(|name| name.ends_with("weight")).cloned().collect();
        let [renamed, missing, misshapen, ..] = names.as_slice() else { panic!("{name} has few tensors") };
        let value = weights.remove(renamed).unwrap();
        let new_name = renamed.replace("weight", "weights");
        weights.insert(new_name.clone(), value);
        weights.remove(missing);
        let value = weights.remove(misshapen).unwrap();
        weights.insert(misshapen.clone(), Tensor::cat(&[&value, &value], 0));
        write_tensors(folder.path(), &weights);
        let error = refused(folder.path());
        for part in [
            "2 missing:".to_owned(),
            format!("    {renamed} ["),
            format!("    {missing} ["),
            "1 unexpected:".to_owned(),
            format!("    {new_name} ["),
            format!("(is it {renamed}, renamed?)"),
            "1 of another shape:".to_owned(),
            format!("    {misshapen} is ["),
        ] {
            assert!(error.contains(&part), "{name}: {part:?} is not in\n{error}");
        }
    }
}

#[test]
fn a_type_that_is_no_weight_is_refused() {
    let (_, folder) = folders().swap_remove(0);
    let mut weights = tensors(folder.path());
    let value = weights["model.norm.weight"].to_kind(Kind::Int64);
    weights.insert("model.norm.weight".to_owned(), value);
    write_tensors(folder.path(), &weights);
    let error = refused(folder.path());
    assert!(error.contains("1 of another type:\n    model.norm.weight is I64, expected a float"), "{error}");
}

#[test]
fn a_tied_head_that_differs_is_no_copy() {
    let (name, folder) = folders().swap_remove(1);
    assert_eq!(name, "llama3_tied");
    let mut weights = tensors(folder.path());
    let embedding = weights["model.embed_tokens.weight"].shallow_clone();
    weights.insert("lm_head.weight".to_owned(), embedding.copy());
    write_tensors(folder.path(), &weights);
    model(&open(folder.path()), Kind::Float); // stored twice, equal: fine
    weights.insert("lm_head.weight".to_owned(), embedding + 1.0);
    write_tensors(folder.path(), &weights);
    let error = open(folder.path()).model(BuildOptions::default()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight differs from model.embed_tokens.weight"), "{error}");
}

#[test]
fn files_that_are_cut_short_or_contradict_their_index_are_listed() {
    let (_, source) = folders().swap_remove(0);
    let foreign = open(source.path());
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("model");
    let options = ExportOptions { max_shard_bytes: 20_000, ..ExportOptions::default() };
    let files = export(&model(&foreign, Kind::Float), &out, &options).unwrap().files;
    assert!(files.len() >= 4, "{files:?}");
    let bytes = std::fs::read(out.join(&files[0])).unwrap();
    std::fs::write(out.join(&files[0]), &bytes[..bytes.len() - 1]).unwrap();
    std::fs::write(out.join(&files[1]), &bytes[..20]).unwrap();
    std::fs::remove_file(out.join(&files[2])).unwrap();
    let last = &files[3];
    let mut tensors: BTreeMap<_, _> = read_safetensors(&out.join(last));
    let (moved, value) = tensors.pop_first().unwrap();
    tensors.insert("stray".to_owned(), value);
    let tensors: Vec<_> = tensors.into_iter().collect();
    training::checkpoint::write_tensors(&out.join(last), &tensors).unwrap();
    let error = refused(&out);
    for part in [
        format!("{}: its {} bytes are not as many as its header describes", files[0], bytes.len() - 1),
        format!("{}: its 20 bytes end inside the header", files[1]),
        files[2].clone(),
        format!("{last}: the index says that {moved} is in it, it is not"),
        format!("{last}: stray is in it, and not in the index"),
    ] {
        assert!(error.contains(&part), "{part:?} is not in\n{error}");
    }
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::copy(source.path().join("config.json"), out.join("config.json")).unwrap();
    assert!(refused(&out).contains("neither model.safetensors nor"), "{}", refused(&out));
    std::fs::write(out.join("pytorch_model.bin"), "pickle").unwrap();
    assert!(refused(&out).contains("pytorch_model.bin, a pickle"), "{}", refused(&out));
}

#[test]
fn keys_of_the_configuration_are_accounted_for() {
    let (_, folder) = folders().swap_remove(0);
    let good = config(folder.path());
    let foreign = open(folder.path());
    assert!(foreign.without_effect.contains_key("transformers_version"), "{:?}", foreign.without_effect);
    assert!(!foreign.without_effect.contains_key("rms_norm_eps"));
    let mut bad = good.clone();
    bad.insert("head_mixing".to_owned(), json!(true));
    bad.insert("mlp_bias".to_owned(), json!(true));
    bad.insert("hidden_size".to_owned(), json!("wide"));
    bad.insert(
        "rope_parameters".to_owned(),
        json!({ "rope_type": "longrope", "rope_theta": 1e4, "short": [1.0] }),
    );
    write_config(folder.path(), &bad);
    let error = refused(folder.path());
    for part in [
        "head_mixing is not a key that this format knows",
        "mlp_bias is true, only false can be read",
        "hidden_size is \"wide\", expected a whole number",
        "rope_type longrope is not built here",
        "rope_parameters.short is not a key",
    ] {
        assert!(error.contains(part), "{part:?} is not in\n{error}");
    }
    let mut odd = good.clone();
    odd.insert("head_mixing".to_owned(), json!(true));
    write_config(folder.path(), &odd);
    let options = ImportOptions { ignored_keys: vec!["head_mixing".to_owned()], ..ImportOptions::default() };
    assert_eq!(Foreign::open(folder.path(), &options).unwrap().without_effect["head_mixing"], json!(true));
}

#[test]
fn other_models_are_refused_by_name() {
    let (_, folder) = folders().swap_remove(0);
    let good = config(folder.path());
    for (key, value, part) in [
        ("model_type", json!("gpt9"), "no format for model_type gpt9; this binary reads: "),
        ("model_type", json!("gpt9"), "llama (model_type llama)"),
        (
            "architectures",
            json!(["LlamaForTokenClassification"]),
            "only those of LlamaForCausalLM can be read",
        ),
        ("quantization_config", json!({ "bits": 4 }), "quantised weights are not read"),
    ] {
        let mut config = good.clone();
        config.insert(key.to_owned(), value);
        write_config(folder.path(), &config);
        assert!(refused(folder.path()).contains(part), "{part:?} is not in\n{}", refused(folder.path()));
    }
}

/// A language model of one layer with these mixers and this channel mixer.
fn own_model(change: impl FnOnce(&mut Value)) -> Model {
    let mut section = json!({
        "d_model": 16, "n_layers": 2, "vocab_size": 11, "embedding": "token", "norm": "rms_norm",
        "head": "language", "max_positions": 32,
        "block_pattern": { "kind": "parallel", "layer": {
            "mixers": [{ "kind": "attention", "n_heads": 4, "n_kv_heads": 2, "window": 8, "position": "rope" }],
            "channel_mixer": { "kind": "swiglu", "d_hidden": 24 },
        } },
    });
    change(&mut section);
    hymba_tests::model(&section.to_string(), Kind::Float, 3)
}

#[test]
fn a_model_goes_to_the_first_format_that_can_say_it() {
    let folder = tempfile::tempdir().unwrap();
    let exported = export(&own_model(|_| ()), &folder.path().join("a"), &ExportOptions::default()).unwrap();
    assert_eq!(exported.format, "mistral");
    let all = own_model(|section| {
        section["block_pattern"]["layer"]["mixers"][0]["window"] = Value::Null;
        section["block_pattern"]["layer"]["in_projection"] = json!("separate");
        section["block_pattern"]["layer"]["out_projection"] = json!("per_branch");
        section["block_pattern"]["layer"]["in_bias"] = json!(true);
        section["block_pattern"]["layer"]["out_bias"] = json!(true);
    });
    let exported = export(&all, &folder.path().join("b"), &ExportOptions::default()).unwrap();
    assert_eq!(exported.format, "llama");
    let back = open(&folder.path().join("b"));
    assert!(config(&folder.path().join("b"))["attention_bias"].as_bool().unwrap());
    // Another storage of the same numbers: fused here, separate there.
    let fused = model(&back, Kind::Float);
    let weight = |name: &str| all.parameters().get(name).unwrap().tensor.shallow_clone();
    let expected = Tensor::cat(
        &["q", "k", "v"].map(|slice| weight(&format!("layers.1.in_proj.attention.{slice}.weight"))),
        0,
    );
    assert_eq!(bytes(&fused.parameters().get("layers.1.in_proj.weight").unwrap().tensor), bytes(&expected));
    let used = export(&all, &folder.path().join("b"), &ExportOptions::default()).unwrap_err();
    assert!(matches!(used, WeightsError::Exists { .. }), "{used}");
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left beside the folders: {names:?}");
}

/// Gives the layers of [`own_model`] this mixer alone.
fn one_mixer(section: &mut Value, mixer: &Value) {
    section["block_pattern"]["layer"]["mixers"] = json!([mixer]);
}

#[test]
fn what_a_format_cannot_say_is_refused_with_the_reason() {
    type Change = fn(&mut Value);
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, Change, &str); 13] = [
        ("llama", |_| (), "layers[0].mixers[0].window is 8, there it would be null"),
        ("mistral", |s| s["meta_tokens"] = json!(3), "meta_tokens is 3, there it would be 0"),
        (
            "mistral",
            |s| s["norm"] = json!("layer_norm"),
            "the model's norm is `layer_norm`, this format has `rms_norm`",
        ),
        (
            "mistral",
            |s| s["block_pattern"]["layer"]["mixers"][0]["qk_norm"] = json!("rms"),
            "layers[0].mixers[0].qk_norm is \"rms\", there it would be \"none\"",
        ),
        (
            "mistral",
            |s| s["block_pattern"]["global_layers"] = json!([1]),
            "layers[1].mixers[0].window is null, there it would be 8",
        ),
        (
            "mistral",
            |s| s["head"] = json!({ "kind": "language", "soft_cap": 20.0 }),
            "head.soft_cap is 20.0, there it would be null",
        ),
        (
            "mistral",
            |s| s["block_pattern"]["layer"]["channel_mixer"] = json!({ "kind": "relu2", "d_hidden": 8 }),
            "layers[0].channel_mixer is `relu2`, this format has `swiglu`",
        ),
        ("mamba", |_| (), "layers[0] has the mixers [\"attention\"], a layer of this format has [\"mamba\"]"),
        ("jamba", |_| (), "no layer has the mixer `mamba`"),
        (
            "jamba",
            |s| {
                let attention = s["block_pattern"]["layer"].clone();
                let mut mamba = attention.clone();
                mamba["mixers"] = json!([{ "kind": "mamba", "inner_norm": "rms_norm" }]);
                s["n_layers"] = json!(3);
                s["block_pattern"] = json!({
                    "kind": "custom", "layers": { "a": attention, "m": mamba },
                    "sequence": [{ "layer": "m" }, { "layer": "a", "repeat": 2 }],
                });
            },
            "layers [1, 2] have attention, this format has one such layer at the same place of every period",
        ),
        (
            "mamba2",
            |s| one_mixer(s, &json!({ "kind": "mamba2", "d_inner": 24, "n_heads": 2 })),
            "24 inner channels",
        ),
        ("xlstm", |s| one_mixer(s, &json!({ "kind": "mlstm", "n_heads": 2 })), "queries are 8 channels wide"),
        (
            "xlstm",
            |s| {
                one_mixer(s, &json!({ "kind": "mlstm", "n_heads": 2, "head_dim": 32, "v_head_dim": 64 }));
                s["head"] = json!({ "kind": "language", "soft_cap": 20.0 });
                s["tie_embeddings"] = json!(false);
                s["norm"] = json!({ "kind": "rms_norm", "eps": 1e-5 });
            },
            "layers[0].mixers[0].norm.eps is 1e-6, there it would be 0.00001",
        ),
    ];
    for (format, change, part) in cases {
        let options = ExportOptions { format: Some(Component::of(format)), ..ExportOptions::default() };
        let error = export(&own_model(change), &folder.path().join("x"), &options).unwrap_err().to_string();
        assert!(error.contains(part), "{format}: {part:?} is not in\n{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    }
    let odd = own_model(|s| s["meta_tokens"] = json!(3));
    let error = export(&odd, &folder.path().join("x"), &ExportOptions::default()).unwrap_err().to_string();
    for format in ["hymba", "llama", "mamba", "mistral"] {
        assert!(error.contains(&format!("\n  {format}:\n    ")), "{error}");
    }
}

/// Everything the official class needs: each key of its configuration, each tensor by name, shape and value.
#[test]
fn an_exported_hymba_is_what_its_class_reads() {
    for name in ["base", "kqnorm"] {
        let source = tempfile::tempdir().unwrap();
        official::lay_out(name, source.path());
        for reading in ["prefill", "cache"] {
            let foreign = official::foreign(name, reading);
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("model");
            let tokens = TokenIds { bos: Some(1), eos: vec![2], pad: Some(0) };
            let options =
                ExportOptions { format: Some(foreign.format.clone()), tokens, ..ExportOptions::default() };
            export(&model(&foreign, Kind::Float), &out, &options).unwrap();
            let (theirs, ours) = (config(source.path()), config(&out));
            let idle: Vec<&String> = foreign.without_effect.keys().collect();
            for (key, value) in &ours {
                match theirs.get(key) {
                    Some(other) if number(other) == number(value) => {}
                    // Not in force: without NTK scaling nothing reads the length of the first training.
                    Some(_) if key == "orig_max_position_embeddings" && name == "kqnorm" => {}
                    Some(_) if ["architectures", "torch_dtype"].contains(&key.as_str()) => {}
                    None if key == "auto_map" => {}
                    other => panic!("{name}: {key} is {value}, the official {other:?}"),
                }
            }
            let defaults = ["add_cross_attention", "is_encoder_decoder"].map(str::to_owned); // false for every class
            for key in theirs.keys().filter(|key| !ours.contains_key(*key)) {
                assert!(idle.contains(&key) || defaults.contains(key), "{name}: {key} was not written");
            }
            let (theirs, ours) = (tensors(source.path()), tensors(&out));
            assert!(theirs.keys().eq(ours.keys()), "{name}: {:?}", ours.keys());
            for (tensor, value) in &theirs {
                assert_eq!(ours[tensor].size(), value.size(), "{name}: {tensor}");
                let equal = bytes(&ours[tensor]) == bytes(value);
                assert!(equal || is_unused_key_norm(tensor), "{name}: {tensor} differs");
            }
        }
    }
}

/// A number whatever its spelling, anything else as it is.
fn number(value: &Value) -> Value {
    value.as_f64().map_or_else(|| value.clone(), Value::from)
}

/// The released configuration: as many parameters as the official class builds, the paper's layers.
#[test]
fn the_released_configuration_becomes_a_plan() {
    let released = official::folder().join("Hymba-1.5B-Base.config.json");
    let (section, plan) = plan_of(&released, &ImportOptions::default()).unwrap();
    assert_eq!(plan.parameter_count(), 1_522_797_824);
    let pattern = &section["block_pattern"];
    assert_eq!(pattern["global_layers"], json!([0, 15, 31]));
    assert_eq!(pattern["kv_sharing"]["groups"].as_array().unwrap().len(), 14);
    assert_eq!(pattern["layer"]["mixers"][0]["window"], json!(1025));
}
