//! Looks for an example that breaks a law, and shrinks it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use torch_bridge::guards::ThreadCount;

use super::{
    case::Case,
    harness::Spec,
    judge::{Deviation, Judge},
    laws::{self, Proof},
    layout::Layout,
    noise::Noise,
    report::{Counterexample, LawReport, Outcome, Report},
};
use crate::plan::{Exemption, Law};

/// Most examples that are tried while one shrinks.
const SHRINKING: usize = 300;

/// Proves every law of a case.
pub fn check(case: &Case) -> Report {
    let start = Instant::now();
    // Tensors this small are slower on several threads.
    let _threads = ThreadCount::new(1);
    let spec = case.spec();
    let mut exemptions = spec.exemptions(0);
    exemptions.extend(spec.exemptions(laws::META));
    let law = |law: Law| {
        let start = Instant::now();
        let outcome = match laws::proof(law, case, &spec) {
            Ok(proof) => outcome(&spec, &proof, exemptions.iter().find(|exemption| exemption.law == law)),
            Err(reason) => Outcome::DoesNotApply { reason },
        };
        LawReport { law, statement: law.statement(), outcome, seconds: start.elapsed().as_secs_f64() }
    };
    let laws = Law::ALL.iter().copied().map(law).collect();
    Report { case: case.clone(), laws, seconds: start.elapsed().as_secs_f64() }
}

fn outcome(spec: &Spec, proof: &Proof, exemption: Option<&Exemption>) -> Outcome {
    let plain = search(spec, proof, None);
    let Some(exemption) = exemption else {
        return match plain {
            Ok((error, examples)) => Outcome::Holds { error, examples },
            Err(broken) => Outcome::Broken(broken),
        };
    };
    let exempt = |error: f64, needed: bool| Outcome::Exempt {
        reason: exemption.reason.clone(),
        within: exemption.within,
        error,
        needed,
    };
    match (plain, exemption.within) {
        (Ok((error, _)), _) => exempt(error, false),
        (Err(broken), None) => exempt(broken.deviation.error, true),
        (Err(_), within @ Some(_)) => match search(spec, proof, within) {
            Ok((error, _)) => exempt(error, true),
            Err(broken) => Outcome::Broken(broken),
        },
    }
}

/// The worst error and the number of examples, or the smallest example that breaks the law.
fn search(spec: &Spec, proof: &Proof, within: Option<f64>) -> Result<(f64, usize), Box<Counterexample>> {
    let examples = (proof.examples)(spec, &mut Noise::new(spec.seed));
    let mut worst = 0.0_f64;
    for example in &examples {
        match judge(spec, proof, example, within) {
            Ok(error) => worst = worst.max(error),
            Err(deviation) => return Err(Box::new(shrink(spec, proof, example, deviation, within))),
        }
    }
    Ok((worst, examples.len()))
}

fn shrink(
    spec: &Spec,
    proof: &Proof,
    example: &Layout,
    deviation: Deviation,
    within: Option<f64>,
) -> Counterexample {
    let (mut example, mut deviation, mut tried, mut shrunk) = (example.clone(), deviation, 0, 0);
    'smaller: loop {
        for candidate in example.smaller() {
            if tried == SHRINKING {
                break 'smaller;
            }
            tried += 1;
            if let Err(found) = judge(spec, proof, &candidate, within) {
                (example, deviation) = (candidate, found);
                shrunk += 1;
                continue 'smaller;
            }
        }
        break;
    }
    Counterexample { example, deviation, shrunk }
}

/// The error of one example, or why it breaks the law. A call that fails or panics breaks it.
fn judge(spec: &Spec, proof: &Proof, example: &Layout, within: Option<f64>) -> Result<f64, Deviation> {
    let mut judge = Judge::new(within);
    let done = catch_unwind(AssertUnwindSafe(|| (proof.check)(spec, example, &mut judge)));
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => judge.refuse("the call fails", error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            judge.refuse("the call panics", text.unwrap_or("without a message"));
        }
    }
    match judge.broken {
        Some(deviation) => Err(deviation),
        None => Ok(judge.worst),
    }
}
