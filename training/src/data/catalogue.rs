//! `kind: named`: data sets that the world knows by name, checked byte for byte.

use hymba_plus::{component_config, register};

use super::{
    Corpus, DataError, Dataset, Description, Document, Fingerprint, SplitKind,
    published::{Published, directories},
    split,
};
use crate::slot::{DatasetSpec, Resolve, dataset};

/// A public data set by its name, checked against its published SHA-256. It is looked for in the directory
/// `HYMBA_DATA_DIR`, or in `data/` where the command runs.
#[component_config]
pub struct NamedDataset {
    /// Which one.
    pub name: DatasetName,
    /// Part of the text, from its end, that is held out for validation.
    #[schemars(range(min = 0.0, max = 0.9))]
    #[default(0.1)]
    pub validation_fraction: f64,
}

register!(dataset "named" => NamedDataset);

/// Data sets of the catalogue.
#[component_config]
pub enum DatasetName {
    /// 1.1 MB of Shakespeare's plays in one file (Karpathy, char-rnn); public domain.
    TinyShakespeare,
    /// The validation part of WikiText-2 (Merity et al. 2016), tokenised by words; CC BY-SA 3.0.
    Wikitext2Valid,
    /// The test part of WikiText-2 (Merity et al. 2016), tokenised by words; CC BY-SA 3.0.
    Wikitext2Test,
}

impl DatasetName {
    fn published(self) -> Published {
        match self {
            Self::TinyShakespeare => Published {
                name: "tiny_shakespeare",
                file: "tinyshakespeare.txt",
                size: 1_115_394,
                sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                licence: "public domain text",
                address: "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            },
            Self::Wikitext2Valid => Published {
                name: "wikitext2_valid",
                file: "wikitext2-valid.txt",
                size: 1_121_681,
                sha256: "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                licence: "CC BY-SA 3.0",
                address: "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/valid.txt",
            },
            Self::Wikitext2Test => Published {
                name: "wikitext2_test",
                file: "wikitext2-test.txt",
                size: 1_256_449,
                sha256: "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
                licence: "CC BY-SA 3.0",
                address: "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt",
            },
        }
    }
}

impl DatasetSpec for NamedDataset {
    fn describe(&self, _resolve: Resolve<'_>) -> Result<Description, DataError> {
        Ok(Description::Text)
    }

    fn load(&self, _resolve: Resolve<'_>) -> Result<Dataset, DataError> {
        let (text, record) = self.name.published().read(&directories())?;
        let (train, validation) =
            split::split(vec![Document::of_text(text)], self.validation_fraction, SplitKind::Tail)?;
        Ok(Dataset::Text(Corpus { train, validation, files: vec![record], settings: Fingerprint::default() }))
    }

    fn holds_out(&self) -> bool {
        self.validation_fraction > 0.0
    }
}
