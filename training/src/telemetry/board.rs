//! TensorBoard event files, drawn from the metrics.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use tensorboard_rs::summary_writer::SummaryWriter;

use super::{MetricRecord, TelemetryError};

/// The TensorBoard writer of one stage. TensorBoard is a convenience: when its library fails (it panics, for example
/// on a full disk), the board closes and the run goes on.
pub(crate) struct Board {
    writer: Option<SummaryWriter>,
}

impl Board {
    /// Starts the stage's event files anew from the records that stand: a resumed run shows no step twice.
    pub(crate) fn open(folder: &Path, stage: &str, records: &[MetricRecord]) -> Result<Self, TelemetryError> {
        let failed = |source| TelemetryError::Io { path: folder.to_owned(), source };
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(failed)?;
        }
        std::fs::create_dir_all(folder).map_err(failed)?; // the library panics where it cannot make it
        let mut board = Self { writer: quietly(|| SummaryWriter::new(folder)) };
        records.iter().filter(|record| record.stage == stage).for_each(|record| board.add(record));
        Ok(board)
    }

    /// Draws a record: its values under `KIND/NAME`, at its step.
    pub(crate) fn add(&mut self, record: &MetricRecord) {
        self.with(|writer| {
            for (name, value) in &record.values {
                if let Some(value) = value {
                    let tag = format!("{}/{name}", record.kind);
                    writer.add_scalar(&tag, *value as f32, record.step as usize);
                }
            }
        });
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) {
        self.with(SummaryWriter::flush);
    }

    fn with(&mut self, work: impl FnOnce(&mut SummaryWriter)) {
        let Some(mut writer) = self.writer.take() else { return };
        self.writer = quietly(move || {
            work(&mut writer);
            writer
        });
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let writer = self.writer.take();
        let _ = quietly(move || drop(writer));
    }
}

/// The result of `work`, or `None` when it panics.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The payloads of the records of a TFRecord file: length (8 bytes), checksum (4), payload, checksum (4).
    fn payloads(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut at, mut payloads) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            payloads.push(bytes[at + 12..at + 12 + length].to_vec());
            at += 16 + length;
        }
        payloads
    }

    #[test]
    fn values_are_drawn_and_a_stage_is_drawn_anew() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/pretrain");
        let record = |step, loss| MetricRecord::new("train", "pretrain", step, 0).with("loss", loss);
        drop(Board::open(&folder, "pretrain", &[record(1, 4.0), record(2, 3.0)]).unwrap());
        let other = MetricRecord::new("train", "sft", 1, 0).with("loss", 9.0);
        let mut board = Board::open(&folder, "pretrain", &[record(1, 4.0), other]).unwrap();
        board.add(&record(2, 0.5));
        drop(board);
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        assert!(files[0].file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
        let payloads = payloads(&std::fs::read(&files[0]).unwrap());
        assert_eq!(payloads.len(), 3); // the version, and two scalars
        let holds = |payload: &[u8], part: &[u8]| payload.windows(part.len()).any(|window| window == part);
        assert!(holds(&payloads[0], b"brain.Event:2"));
        for (payload, loss) in payloads[1..].iter().zip([4.0_f32, 0.5]) {
            assert!(holds(payload, b"train/loss") && holds(payload, &loss.to_le_bytes()));
        }
    }
}
