//! One moving bar on a terminal, a few plain lines anywhere else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

/// Where there is no terminal, a job smaller than this is over before its tenths are worth a line.
const SMALL: u64 = 50_000_000;

/// The progress of one job that is counted in bytes.
pub struct Bytes {
    label: String,
    total: u64,
    started: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    /// The tenth of the job that was last printed.
    Lines(u64),
}

impl Bytes {
    /// Begins at `done` of `total` bytes; `done` is above zero when a broken download goes on.
    pub fn start(label: impl Into<String>, done: u64, total: u64) -> Self {
        let label = label.into();
        let shown = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total).with_position(done).with_message(label.clone());
            let template = "  {msg:<40!} {bar:25} {decimal_bytes:>9}/{decimal_total_bytes:<9} {decimal_bytes_per_sec:>11} {eta:>4}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            // The speed is that of this run, not of what an earlier one left.
            bar.reset_eta();
            Shown::Bar(bar)
        } else {
            let from = if done > 0 { format!(", going on at {}", DecimalBytes(done)) } else { String::new() };
            if total > SMALL {
                eprintln!("  {label}: {}{from}", DecimalBytes(total));
            }
            Shown::Lines(tenth(done, total))
        };
        Self { label, total, started: Instant::now(), shown }
    }

    /// Says how many bytes of the total are done now.
    pub fn set(&mut self, done: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines(last) => {
                let now = tenth(done, self.total);
                if now > *last && now < 10 && self.total > SMALL {
                    eprintln!("  {}: {}0 %", self.label, now);
                    *last = now;
                }
            }
        }
    }

    /// Ends well: leaves one line with what was done and how long it took.
    pub fn finish(self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        let took = rounded(self.started.elapsed());
        eprintln!("  {}: {} in {took}", self.label, DecimalBytes(self.total));
    }

    /// Ends badly: leaves no bar behind; the error that follows says why.
    pub fn abandon(self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn tenth(done: u64, total: u64) -> u64 {
    done * 10 / total.max(1)
}

/// A duration a person reads: `0.4 s`, `12 s`, `2 min 05 s`.
pub fn rounded(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..60 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(rounded(Duration::from_millis(440)), "0.4 s");
        assert_eq!(rounded(Duration::from_secs(12)), "12 s");
        assert_eq!(rounded(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn an_empty_job_has_no_tenths() {
        assert_eq!(tenth(0, 0), 0);
        assert_eq!(tenth(55, 100), 5);
    }
}
