//! Tokenizers on their way in and out.

use std::path::Path;

use hymba_plus::{registry::Component, weights::TokenIds};
use serde_json::{Map, Value, json};
use training::{slot::tokenizer, tokenizer::Tokenizer};

use crate::context::StageError;

/// The file that all libraries share.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// The file beside it.
pub(super) const CONFIG: &str = "tokenizer_config.json";
/// The slot's component that reads such a file.
const FILE: &str = "file";

/// A tokenizer from elsewhere, and how a recipe says it.
pub(super) struct ForeignTokenizer {
    pub(super) tokenizer: Tokenizer,
    pub(super) end_of_text: String,
}

/// Reads the `tokenizer.json` of a foreign folder, if there is one. The border between documents is `end_of_text` when it
/// is given, else the `eos_token` of the `tokenizer_config.json`, else the token whose number `tokens` has.
pub(super) fn read(
    folder: &Path,
    end_of_text: Option<&str>,
    tokens: &TokenIds,
) -> Result<Option<ForeignTokenizer>, StageError> {
    let path = folder.join(TOKENIZER);
    if !path.exists() {
        return Ok(None);
    }
    let other = |message: String| StageError::Other(format!("{}: {message}", path.display()));
    let config = object(&folder.join(CONFIG))?.unwrap_or_default();
    let by_number = |id: i64| -> Result<Option<String>, StageError> {
        let content = object(&path)?.unwrap_or_default();
        let added = content.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
        let token = added.iter().find(|token| token.get("id").and_then(Value::as_i64) == Some(id));
        Ok(token.and_then(|token| token.get("content")?.as_str().map(str::to_owned)))
    };
    let told = end_of_text.map(str::to_owned).or_else(|| token_of(&config, "eos_token"));
    let end_of_text = match (told, tokens.eos.first()) {
        (Some(token), _) => token,
        (None, Some(&id)) => by_number(id)?.unwrap_or_default(),
        (None, None) => String::new(),
    };
    if end_of_text.is_empty() {
        return Err(other(
            "nothing names the token between documents; name it with --end-of-text, or leave the tokenizer out with \
             --no-tokenizer"
                .to_owned(),
        ));
    }
    let pad = token_of(&config, "pad_token");
    let component = component(&path, &end_of_text, pad.as_deref());
    let tokenizer = component.make()?.build(&[], &|path| path.as_str().into())?;
    Ok(Some(ForeignTokenizer { tokenizer, end_of_text }))
}

/// The component that reads a `tokenizer.json`.
pub(super) fn component(path: &Path, end_of_text: &str, pad: Option<&str>) -> Component<tokenizer> {
    let mut config = Map::new();
    config.insert("path".to_owned(), json!(path));
    config.insert("end_of_text".to_owned(), json!(end_of_text));
    if let Some(pad) = pad {
        config.insert("pad".to_owned(), json!(pad));
    }
    Component::new(FILE, config)
}

/// The files of a run's tokenizer as another library reads them; none without one.
pub(super) fn files(run: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<(String, Vec<u8>)>, StageError> {
    let Some(tokenizer) = tokenizer else { return Ok(Vec::new()) };
    let path = run.join(TOKENIZER);
    let bytes =
        std::fs::read(&path).map_err(|error| StageError::Other(format!("{}: {error}", path.display())))?;
    let mut config = object(&run.join(CONFIG))?.unwrap_or_default();
    // Our own notes beside what every library reads.
    for ours in ["hymba_plus", "planned_vocab_size"] {
        config.remove(ours);
    }
    let name = |id: u32| tokenizer.decode(&[id]).map(Value::from);
    let (eos, pad) = (name(tokenizer.eos())?, name(tokenizer.pad())?);
    // A document of ours begins with the token that ends the one before.
    for (role, token) in [("bos_token", &eos), ("eos_token", &eos), ("pad_token", &pad)] {
        config.entry(role).or_insert_with(|| token.clone());
    }
    config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
    let config = serde_json::to_vec_pretty(&config).map_err(|error| StageError::Other(error.to_string()))?;
    Ok(vec![(TOKENIZER.to_owned(), bytes), (CONFIG.to_owned(), config)])
}

/// The numbers of a tokenizer's borders.
pub(super) fn ids(tokenizer: &Tokenizer) -> TokenIds {
    let (eos, pad) = (i64::from(tokenizer.eos()), i64::from(tokenizer.pad()));
    TokenIds { bos: Some(eos), eos: vec![eos], pad: Some(pad) }
}

/// A token by its role: a text, or an object with its `content`.
fn token_of(config: &Map<String, Value>, role: &str) -> Option<String> {
    let value = config.get(role)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A JSON object from a file; none when there is no such file.
pub(super) fn object(path: &Path) -> Result<Option<Map<String, Value>>, StageError> {
    let failed = |message: String| StageError::Other(format!("{}: {message}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}
