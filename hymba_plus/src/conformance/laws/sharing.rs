//! Shared keys and values: a consumer that reads its producer's view is a mixer that has those keys and values itself.

use tch::Kind;
use torch_bridge::{Error, Result};

use super::{META, long};
use crate::{
    conformance::{
        harness::{Place, Spec, Subject},
        judge::Judge,
        layout::{Layout, chunks, packed, padded},
        noise::Noise,
        run::outputs,
    },
    plan::KvRole,
};

pub(super) fn examples(spec: &Spec, noise: &mut Noise) -> Vec<Layout> {
    let long = long(spec);
    let mut all = Vec::new();
    for meta in [0, META] {
        all.push(Layout::plain(meta, 1, &[2, 1]));
        all.push(Layout::plain(meta, 2, &[long, 0, 1, long]));
        all.push(Layout::plain(meta, 2, &vec![1; long]));
        let calls = chunks(noise, long);
        all.push(padded(noise, meta, 3, &calls));
        let layout = Layout::plain(meta, 2, &chunks(noise, long));
        all.push(packed(noise, layout, 5));
    }
    all
}

/// A producer, then a consumer of what it shares.
pub(super) fn producer_and_consumer(spec: &Spec, meta_tokens: i64, kind: Kind) -> Result<Subject> {
    let producer = |name: &str| format!("producer.{name}");
    let consumer = |name: &str| format!("consumer.{name}");
    let places = [
        Place { component: &spec.component, role: KvRole::Producer, key: &producer },
        Place { component: &spec.consumer, role: CONSUMER, key: &consumer },
    ];
    Subject::new(spec, &places, meta_tokens, kind)
}

const CONSUMER: KvRole = KvRole::Consumer { producer: 0 };

pub(super) fn shared_keys(spec: &Spec, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let subject = producer_and_consumer(spec, layout.meta_tokens, Kind::Double)?;
    let streams = subject.streams(layout.batch(), layout.longest(), spec.seed)?;
    let initial = subject.initial(&streams)?;
    let got = outputs(&subject, &streams, &initial, layout)?;

    // What a consumer has of its own stays its own; all else is the producer's.
    let plan = spec.plan(&spec.consumer, CONSUMER, layout.meta_tokens);
    let plan = plan.map_err(|findings| Error::other(format!("{findings:?}")))?;
    let parameters = plan.all_parameters();
    let is_own = |name: &str| {
        plan.inputs.iter().any(|slice| slice.name == name)
            || parameters.iter().any(|p| p.name.strip_prefix(&format!("{}.", plan.name)) == Some(name))
    };
    let producer = |name: &str| format!("producer.{name}");
    let either = |name: &str| if is_own(name) { format!("consumer.{name}") } else { producer(name) };
    let places = [
        Place { component: &spec.component, role: KvRole::Own, key: &producer },
        Place { component: &spec.consumer, role: KvRole::Own, key: &either },
    ];
    let twin = Subject::like(&subject, spec, &places, layout.meta_tokens)?;
    let initial = twin.initial(&streams)?;
    let expected = outputs(&twin, &streams, &initial, layout)?;
    judge.rows_and_gradients(&subject, &streams, &got, &expected)
}
