//! The one tokenizer that everything else uses, whatever trained it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
};

use sha2::{Digest, Sha256};
use tokenizers::{AddedToken, Tokenizer as Library};

use super::{
    StreamDecoder, TokenizerError,
    chat::Templates,
    config::{Borders, TokenizerConfig},
    series::{SeriesBins, SeriesTokens},
    special,
};
use crate::files;

/// A tokenizer with its borders named: one `tokenizer.json`, the ids of the two tokens that training needs, and what
/// the `tokenizer_config.json` beside it says.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    library: Library,
    json: String,
    planned: usize,
    end_of_text: u32,
    pad: u32,
    beginning: u32,
    config: TokenizerConfig,
    series: Option<SeriesBins>,
    /// Made when they are first asked for.
    lazy: Arc<Lazy>,
}

/// What only chats need.
#[derive(Debug, Default)]
struct Lazy {
    /// The library, looking for special tokens in texts.
    with_specials: OnceLock<Library>,
    templates: OnceLock<Templates>,
}

impl Tokenizer {
    /// Wraps a finished tokenizer; `planned` is the size of the vocabulary that the recipe asked for.
    pub(super) fn new(
        mut library: Library,
        planned: usize,
        end_of_text: u32,
        pad: u32,
    ) -> Result<Self, TokenizerError> {
        // What a text says stays text: `<|endoftext|>` inside a document must not end it.
        library.set_encode_special_tokens(true);
        let json =
            library.to_string(false).map_err(TokenizerError::library("writing the tokenizer as JSON"))?;
        let (config, lazy) = (TokenizerConfig::default(), Arc::default());
        let (beginning, series) = (end_of_text, None);
        Ok(Self { library, json, planned, end_of_text, pad, beginning, config, series, lazy })
    }

    /// Wraps a tokenizer with our own two special tokens in its vocabulary.
    pub(super) fn with_own_specials(library: Library, planned: usize) -> Result<Self, TokenizerError> {
        let id = |token: &str| {
            library.token_to_id(token).ok_or_else(|| TokenizerError::Library {
                doing: "finding the special tokens",
                message: format!("`{token}` is not in the vocabulary"),
            })
        };
        let (end_of_text, pad) = (id(special::END_OF_TEXT)?, id(special::PAD)?);
        Self::new(library, planned, end_of_text, pad)
    }

    /// Takes what stands in the `tokenizer_config.json` of a tokenizer.
    #[must_use]
    pub(super) fn with_config(self, config: TokenizerConfig) -> Self {
        Self { config, lazy: Arc::default(), ..self }
    }

    /// The same with tokens for numbers after all others.
    pub(super) fn with_series(mut self, bins: SeriesBins) -> Result<Self, TokenizerError> {
        let names = (0..bins.bins).map(|bin| AddedToken::from(SeriesBins::name(bin), true));
        let failed = TokenizerError::library("adding the tokens of numbers");
        self.library.add_special_tokens(names).map_err(failed)?;
        let planned = self.planned + bins.bins;
        let new = Self::new(self.library, planned, self.end_of_text, self.pad)?.with_config(self.config);
        Ok(Self { series: Some(bins), ..new })
    }

    /// Takes a chat template (Jinja) in the place of its own.
    #[must_use]
    pub fn with_chat_template(mut self, template: &str) -> Self {
        self.config.set_template(template);
        let config = self.config.clone();
        self.with_config(config)
    }

    /// Reads a `tokenizer.json` and the `tokenizer_config.json` beside it, which names its borders; without one they
    /// are `<|endoftext|>` and `<|pad|>`.
    ///
    /// # Errors
    /// When a file cannot be read, or the vocabulary lacks one of the borders.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        let mut tokenizer = super::TokenizerFile::read(path, None, None)?;
        if let Some(own) = tokenizer.config.borders() {
            tokenizer.planned = own.planned_vocab_size;
            tokenizer.series = own.series;
        }
        Ok(tokenizer)
    }

    /// Writes the `tokenizer.json`, and the `tokenizer_config.json` with its borders beside it, each whole or not at
    /// all.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        let name = |id| self.library.id_to_token(id).unwrap_or_default();
        let (end_of_text, pad) = (name(self.end_of_text), name(self.pad));
        self.config.save(
            path,
            &Borders { end_of_text, pad, planned_vocab_size: self.planned, series: self.series },
        )?;
        files::write_atomically(path, self.json.as_bytes())
            .map_err(|source| TokenizerError::Io { path: path.to_owned(), source })
    }

    /// Token ids of a text, without any token at its borders. Special tokens that the text spells out are text.
    ///
    /// # Errors
    /// When the library fails (a file's own rules can).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.library.encode_fast(text, false).map_err(TokenizerError::library("encoding a text"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of many texts, worked on in parallel, in the order of the texts.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let encodings = self
            .library
            .encode_batch_fast(texts.to_vec(), false)
            .map_err(TokenizerError::library("encoding a batch of texts"))?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of token ids; special tokens appear by name. Ids beyond the vocabulary give nothing.
    ///
    /// # Errors
    /// When the library fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.library.decode(ids, false).map_err(TokenizerError::library("decoding token ids"))
    }

    /// A decoder for tokens that come one by one.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Size of the vocabulary for a model: what the recipe planned, which a small text may not fill.
    pub fn planned_vocab_size(&self) -> usize {
        self.planned
    }

    /// Number of tokens that exist, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.library.get_vocab_size(true)
    }

    /// A sentence for the user when the text did not fill the planned vocabulary.
    pub fn notice(&self) -> Option<String> {
        let (have, planned) = (self.vocab_size(), self.planned);
        (have < planned).then(|| {
            format!(
                "the training text gave a vocabulary of {have} tokens, not the planned {planned}; the model keeps \
                 {planned} rows, and the last {} are never used",
                planned - have
            )
        })
    }

    /// Id of the border between documents.
    pub fn eos(&self) -> u32 {
        self.end_of_text
    }

    /// Id of the token that a prompt begins with: the border between documents, as in training here.
    pub fn beginning(&self) -> u32 {
        self.beginning
    }

    /// Takes the `bos_token` of the `tokenizer_config.json`, if there is one, for what a prompt begins with: so the weights
    /// of other libraries were trained.
    #[must_use]
    pub fn beginning_as_elsewhere(self) -> Self {
        let bos = self.config.token("bos_token").and_then(|token| self.id(&token));
        Self { beginning: bos.unwrap_or(self.end_of_text), ..self }
    }

    /// Tokens that end a generated text: the border between documents, and the `eos_token` of the
    /// `tokenizer_config.json` where that is another (a chat model's end of a turn).
    pub fn stop_tokens(&self) -> Vec<u32> {
        let turn = self.config.token("eos_token").and_then(|token| self.id(&token));
        let turn = turn.filter(|id| *id != self.end_of_text);
        std::iter::once(self.end_of_text).chain(turn).collect()
    }

    /// Special tokens by their role, as chat templates name them: `bos_token`, `eos_token` and so on.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        let mut tokens = self.config.tokens();
        for (role, id) in [("eos_token", self.end_of_text), ("pad_token", self.pad)] {
            let name = self.library.id_to_token(id).unwrap_or_default();
            tokens.entry(role.to_owned()).or_insert(name);
        }
        tokens
    }

    /// Every special token, as it is spelt.
    pub(super) fn special_texts(&self) -> Vec<String> {
        let added = self.library.get_added_tokens_decoder().into_values();
        added.filter(|token| token.special).map(|token| token.content).collect()
    }

    /// [`encode`](Self::encode) of a text that may hold special tokens.
    pub(super) fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let library = self.lazy.with_specials.get_or_init(|| {
            let mut library = self.library.clone();
            library.set_encode_special_tokens(false);
            library
        });
        let encoding =
            library.encode_fast(text, false).map_err(TokenizerError::library("encoding a chat"))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn templates(&self) -> &Templates {
        self.lazy.templates.get_or_init(|| Templates::new(&self.config.templates()))
    }

    /// Id of the filler of short rows.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The id of a token, special or not, by its exact spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The tokens for numbers, if it has any.
    pub fn series(&self) -> Option<SeriesTokens> {
        let bins = self.series?;
        Some(SeriesTokens::new(bins, self.id(&SeriesBins::name(0))?))
    }

    /// SHA-256 of the `tokenizer.json`, and of what its tokens for numbers stand for, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new_with_prefix(self.json.as_bytes());
        if let Some(series) = self.series {
            hasher.update(series.limit.to_le_bytes());
        }
        files::hex(&hasher.finalize())
    }
}
