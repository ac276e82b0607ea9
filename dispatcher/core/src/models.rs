//! What is known of models: the catalog's word, profiles by device kind, how long answers are, how often it is wanted.

mod demand;
mod profiled;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_profile::{DeviceProfile, EstimateFrom, LoadTier, Signature};
use flotilla_protocol::catalog::{CatalogEntry, Policy};
use flotilla_protocol::fleet::kind_of_set;
use flotilla_protocol::request::Slo;
use flotilla_protocol::{ModelName, Moment};

use crate::pace::Steps;
use crate::predictor::{Prediction, Predictor};
use crate::price::{Asked, Price};
use crate::queue::Line;
use crate::settings::PolicySettings;
use crate::target::Target;
use demand::Demand;
pub(crate) use profiled::Profiled;

/// A device kind, interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kind(u32);

/// What is known of the devices of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KindFacts {
    /// Bytes a second of its memory, when somebody measured.
    pub(crate) memory_bytes_per_s: Option<u64>,
    /// What an hour costs, when somebody said.
    pub(crate) cost: Option<f64>,
    /// Requests that a worker with such a device takes at once.
    pub(crate) slots: u32,
}

/// All models that the catalog has or requests ask for.
#[derive(Debug)]
pub(crate) struct Models {
    settings: PolicySettings,
    models: BTreeMap<ModelName, Model>,
    kinds: Vec<(String, KindFacts)>,
    /// Models whose steps are others than when [`Models::take_changed`] was last called.
    changed: BTreeSet<ModelName>,
}

/// One model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) policy: Policy,
    slo: Option<Slo>,
    weights_bytes: Option<u64>,
    pub(crate) pinned: bool,
    predictor: Predictor,
    profiles: BTreeMap<Kind, Profiled>,
    demand: Demand,
    /// Device-seconds a second that each line asks for lately.
    line_demand: BTreeMap<Line, Demand>,
    /// The last load that a report told of.
    load_time: Option<Duration>,
}

/// Whether waiting requests have to be priced anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Repricing {
    Needed,
    NotNeeded,
}

impl Models {
    pub(crate) fn new(settings: PolicySettings) -> Self {
        Self {
            settings,
            models: BTreeMap::new(),
            kinds: Vec::new(),
            changed: BTreeSet::new(),
        }
    }

    /// The kind of this name.
    pub(crate) fn kind(&mut self, name: &str) -> Kind {
        let known = self.kinds.iter().position(|(known, _)| known == name);
        let index = known.unwrap_or_else(|| {
            let facts = KindFacts {
                memory_bytes_per_s: None,
                cost: None,
                slots: 1,
            };
            self.kinds.push((name.to_owned(), facts));
            self.kinds.len() - 1
        });
        Kind(u32::try_from(index).expect("there are fewer kinds than workers"))
    }

    /// The kind of several devices that have a model in parts: `2xcpu` of two of kind `cpu`.
    pub(crate) fn kind_of_set(&mut self, members: &[Kind]) -> Kind {
        let kinds: Vec<&str> = members.iter().map(|kind| self.kind_name(*kind)).collect();
        let name = kind_of_set(&kinds);
        let costs = members.iter().map(|kind| self.kinds[kind.index()].1.cost);
        let cost = costs.sum::<Option<f64>>();
        let kind = self.kind(&name);
        let memory_bytes_per_s = members
            .first()
            .and_then(|it| self.kinds[it.index()].1.memory_bytes_per_s);
        self.learn_kind(kind, memory_bytes_per_s, cost);
        kind
    }

    /// What a kind is called.
    pub(crate) fn kind_name(&self, kind: Kind) -> &str {
        &self.kinds[kind.index()].0
    }

    /// Learns about a kind; what is told last counts. Estimates that rest on other facts are made anew.
    pub(crate) fn learn_kind(&mut self, kind: Kind, memory_bytes_per_s: Option<u64>, cost: Option<f64>) {
        let slots = self.kinds[kind.index()].1.slots;
        self.put_kind(
            kind,
            KindFacts {
                memory_bytes_per_s,
                cost,
                slots,
            },
        );
    }

    /// Learns how many requests a worker with a device of a kind takes at once.
    pub(crate) fn learn_slots(&mut self, kind: Kind, slots: u32) {
        let known = self.kinds[kind.index()].1;
        let slots = known.slots.max(slots);
        self.put_kind(kind, KindFacts { slots, ..known });
    }

    fn put_kind(&mut self, kind: Kind, facts: KindFacts) {
        let known = &mut self.kinds[kind.index()].1;
        if *known == facts {
            return;
        }
        *known = facts;
        for (name, model) in &mut self.models {
            model.forget_estimate(kind);
            self.changed.insert(name.clone());
        }
    }

    /// Models whose steps are others since this was last asked.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<ModelName> {
        std::mem::take(&mut self.changed)
    }

    /// Takes a catalog entry. Waiting requests of the model have to be priced anew.
    pub(crate) fn put(&mut self, entry: &CatalogEntry) {
        let prior = self.settings.output_tokens_prior;
        let model = self.entry(&entry.name);
        model.policy = entry.policy.unwrap_or_default();
        model.slo = entry.slo;
        model
            .predictor
            .set_prior(Some(entry.output_tokens_prior.unwrap_or(prior)));
        model.pinned = entry.pin;
        if model.weights_bytes != Some(entry.facts.weights_bytes) {
            model.weights_bytes = Some(entry.facts.weights_bytes);
            let kinds: Vec<Kind> = model.profiles.keys().copied().collect();
            for kind in kinds {
                model.forget_estimate(kind);
            }
            self.changed.insert(entry.name.clone());
        }
    }

    pub(crate) fn remove(&mut self, model: &ModelName) {
        self.models.remove(model);
        self.changed.insert(model.clone());
    }

    pub(crate) fn get(&self, model: &ModelName) -> Option<&Model> {
        self.models.get(model)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ModelName, &Model)> {
        self.models.iter()
    }

    /// The model, with defaults when nothing is known of it.
    pub(crate) fn entry(&mut self, name: &ModelName) -> &mut Model {
        if !self.models.contains_key(name) {
            let model = Model {
                policy: Policy::default(),
                slo: None,
                weights_bytes: None,
                pinned: false,
                predictor: Predictor::new(
                    self.settings.predictor.clone(),
                    Some(self.settings.output_tokens_prior),
                ),
                profiles: BTreeMap::new(),
                demand: Demand::default(),
                line_demand: BTreeMap::new(),
                load_time: None,
            };
            self.models.insert(name.clone(), model);
        }
        self.models.get_mut(name).expect("it was just put there")
    }

    /// Takes a profile, unless the one there is newer. Its correction begins anew.
    pub(crate) fn put_profile(&mut self, name: &ModelName, profile: DeviceProfile) -> Repricing {
        let kind = self.kind(profile.kind());
        let settings = self.settings.correction.clone();
        let model = self.entry(name);
        if let Some(known) = model.profiles.get(&kind)
            && known.is_real()
            && !profile.replaces(&known.profile)
        {
            return Repricing::NotNeeded;
        }
        model.profiles.insert(kind, Profiled::new(profile, settings));
        self.changed.insert(name.clone());
        Repricing::Needed
    }

    /// Forgets a profile; an estimate takes its place.
    pub(crate) fn remove_profile(&mut self, name: &ModelName, kind: &str) -> Repricing {
        let kind = self.kind(kind);
        let removed = self
            .models
            .get_mut(name)
            .and_then(|model| model.profiles.remove(&kind));
        self.changed.insert(name.clone());
        match removed {
            Some(_) => Repricing::Needed,
            None => Repricing::NotNeeded,
        }
    }

    /// The profile of a model on a kind, estimated when none was given.
    pub(crate) fn profile(&mut self, name: &ModelName, kind: Kind) -> &mut Profiled {
        let known = self.models.get(name);
        if !known.is_some_and(|model| model.profiles.contains_key(&kind)) {
            let estimated = self.estimate(name, kind);
            self.entry(name).profiles.insert(kind, estimated);
            self.changed.insert(name.clone());
        }
        let known = self.models.get_mut(name);
        let profiled = known.and_then(|model| model.profiles.get_mut(&kind));
        profiled.expect("it was just put there")
    }

    fn estimate(&self, name: &ModelName, kind: Kind) -> Profiled {
        let (kind_name, facts) = &self.kinds[kind.index()];
        let settings = &self.settings;
        let weights_bytes = self.weights_bytes(name).unwrap_or(settings.weights_bytes);
        let bandwidth = facts.memory_bytes_per_s.unwrap_or(settings.memory_bytes_per_s);
        // What a worker or a catalog tells may be anything; an estimate is made of what makes sense.
        let cost = facts.cost.filter(|cost| cost.is_finite() && *cost >= 0.0);
        let estimated = DeviceProfile::estimated(EstimateFrom {
            kind: kind_name.clone(),
            cost: cost.unwrap_or(1.0),
            weights_bytes: weights_bytes.max(1),
            memory_bytes_per_s: bandwidth.max(1),
            slots: facts.slots.max(1),
            created: 0.0,
        });
        let estimated = estimated.expect("an estimate from positive numbers is a profile");
        Profiled::new(estimated, settings.correction.clone())
    }

    /// The price of a request of a model on a kind.
    pub(crate) fn price(&mut self, name: &ModelName, kind: Kind, asked: &Asked) -> Price {
        let share_part_min = self.settings.share_part_min;
        let profiled = self.profile(name, kind);
        let price = Price::of(&profiled.profile, profiled.priced_with, asked, share_part_min);
        if price.reach == flotilla_profile::Reach::Extrapolated {
            profiled.extrapolated += 1;
        }
        price
    }

    /// The time until a request ends that has made some of its tokens.
    pub(crate) fn time_left(
        &mut self,
        name: &ModelName,
        kind: Kind,
        signature: Signature,
        output_tokens: u32,
    ) -> Duration {
        let profiled = self.profile(name, kind);
        let time = profiled.profile.time_left(signature, output_tokens);
        time.mul_f64(profiled.priced_with)
    }

    /// The steps of a model on a kind, when somebody asked for it there before.
    pub(crate) fn steps(&self, name: &ModelName, kind: Kind) -> Option<Steps<'_>> {
        let profiled = self.models.get(name)?.profiles.get(&kind)?;
        Some(self.steps_of(profiled))
    }

    /// The steps of a model on every kind on which somebody asked for it before.
    pub(crate) fn steps_by_kind(&self, name: &ModelName) -> impl Iterator<Item = (Kind, Steps<'_>)> {
        let profiles = self.models.get(name).into_iter().flat_map(Model::profiles);
        profiles.map(|(kind, profiled)| (kind, self.steps_of(profiled)))
    }

    fn steps_of<'a>(&self, profiled: &'a Profiled) -> Steps<'a> {
        Steps {
            times: &profiled.steps,
            factor: profiled.priced_with,
            chunk_tokens: self.settings.prefill_chunk_tokens,
        }
    }

    /// The target of a request of a model.
    pub(crate) fn target(
        &self,
        name: &ModelName,
        deadline: Option<Duration>,
        request: Option<Slo>,
    ) -> Option<Target> {
        let model = self.models.get(name);
        // Of several profiles the one that was made last: they all tell what the model's users expect.
        let newest = model.and_then(|model| {
            let real = model.profiles.values().filter(|profiled| profiled.is_real());
            real.max_by(|left, right| left.profile.created().total_cmp(&right.profile.created()))
        });
        Target::of(
            deadline,
            request,
            model.and_then(|model| model.slo),
            newest.map(|profiled| profiled.profile.slos()),
        )
    }

    /// The length of a request's answer, as a range.
    pub(crate) fn predict(
        &mut self,
        now: Moment,
        name: &ModelName,
        prompt_tokens: u32,
        output_tokens_max: u32,
    ) -> Prediction {
        let predictor = &mut self.entry(name).predictor;
        predictor.predict(now, prompt_tokens, output_tokens_max)
    }

    /// Learns from an answer that is complete.
    pub(crate) fn learn_output(
        &mut self,
        now: Moment,
        name: &ModelName,
        prompt_tokens: u32,
        output_tokens: u32,
    ) {
        let predictor = &mut self.entry(name).predictor;
        predictor.handle_finished(now, prompt_tokens, output_tokens);
    }

    /// Learns from the time that an answer took on a device of which `load` was booked meanwhile.
    pub(crate) fn learn_time(
        &mut self,
        name: &ModelName,
        kind: Kind,
        signature: Signature,
        observed: Duration,
        load: f64,
    ) -> Repricing {
        let load_min = self.settings.correction_load_min;
        let profiled = self.profile(name, kind);
        let idle_part = profiled.profile.idle_speedup(signature);
        if profiled.is_real() && idle_part >= 1.0 && load < load_min {
            return Repricing::NotNeeded;
        }
        let at_load = idle_part + (1.0 - idle_part) * load.min(1.0);
        let expected = profiled.profile.e2e(signature).value.mul_f64(at_load);
        profiled.correction.observe(expected, observed, load);
        let factor = profiled.correction.factor();
        if (factor / profiled.priced_with).ln().abs() < REPRICING_LOG_STEP {
            return Repricing::NotNeeded;
        }
        profiled.priced_with = factor;
        self.changed.insert(name.clone());
        Repricing::Needed
    }

    /// A request for a model came in.
    pub(crate) fn note_demand(&mut self, now: Moment, name: &ModelName) {
        self.entry(name).demand.add(now, 1.0);
    }

    /// A request of a line needs so much device time.
    pub(crate) fn note_line_demand(&mut self, now: Moment, name: &ModelName, line: &Line, work: Duration) {
        let lines = &mut self.entry(name).line_demand;
        if lines.len() >= LINE_COUNT_MAX && !lines.contains_key(line) {
            lines.retain(|_, demand| demand.per_s(now) > DEMAND_FORGOTTEN);
        }
        lines
            .entry(line.clone())
            .or_default()
            .add(now, work.as_secs_f64());
    }

    /// Device-seconds a second that each line asks of a model lately.
    pub(crate) fn line_demand(&self, now: Moment, name: &ModelName) -> BTreeMap<Line, f64> {
        let lines = self
            .models
            .get(name)
            .into_iter()
            .flat_map(|model| &model.line_demand);
        lines
            .map(|(line, demand)| (line.clone(), demand.per_s(now)))
            .collect()
    }

    /// A report told how long a load took, and how large the weights are.
    pub(crate) fn learn_load(&mut self, name: &ModelName, load_time: Option<Duration>, weights_bytes: u64) {
        let known = self.models.get(name);
        let known = known.is_some_and(|model| {
            (load_time.is_none() || model.load_time == load_time)
                && (weights_bytes == 0 || model.weights_bytes.is_some())
        });
        if known {
            return;
        }
        let model = self.entry(name);
        model.load_time = load_time.or(model.load_time);
        if weights_bytes > 0 {
            model.weights_bytes.get_or_insert(weights_bytes);
        }
    }

    /// How long it takes until a model is resident: the profile's word for the tier, else the last load seen, else by
    /// its bytes.
    pub(crate) fn load_time(&self, name: &ModelName, kind: Kind, tier: LoadTier) -> Duration {
        let model = self.models.get(name);
        let profiled = model.and_then(|model| model.profiles.get(&kind));
        let by_profile = profiled.and_then(|profiled| profiled.profile.load_time(tier));
        let seen = || model.and_then(|model| model.load_time);
        by_profile.or_else(seen).unwrap_or_else(|| {
            let bytes = self.weights_bytes(name).unwrap_or(self.settings.weights_bytes);
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = bytes as f64 / self.settings.load_bytes_per_s as f64;
            self.settings.load_overhead + Duration::from_secs_f64(seconds)
        })
    }

    /// Bytes of a model's weights, when anybody said.
    pub(crate) fn weights_bytes(&self, name: &ModelName) -> Option<u64> {
        self.models.get(name)?.weights_bytes
    }

    /// How many requests a second a model gets lately.
    pub(crate) fn demand_per_s(&self, now: Moment, name: &ModelName) -> f64 {
        self.models.get(name).map_or(0.0, |model| model.demand.per_s(now))
    }
}

impl Kind {
    fn index(self) -> usize {
        usize::try_from(self.0).expect("an index fits")
    }
}

impl Model {
    /// Whether anybody has asked for it.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.demand.is_any()
    }

    /// Its profiles by kind.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = (Kind, &Profiled)> {
        self.profiles.iter().map(|(kind, profiled)| (*kind, profiled))
    }

    fn forget_estimate(&mut self, kind: Kind) {
        if self
            .profiles
            .get(&kind)
            .is_some_and(|profiled| !profiled.is_real())
        {
            self.profiles.remove(&kind);
        }
    }
}

/// Lines of a model whose demand is remembered before those with next to none are forgotten.
const LINE_COUNT_MAX: usize = 1024;
/// A demand that is next to none, a second.
const DEMAND_FORGOTTEN: f64 = 1e-3;
/// Waiting requests are priced anew when a correction moved by more than this, in natural logarithm: 5 %, so that
/// noise does not sort the queue again and again.
const REPRICING_LOG_STEP: f64 = 0.05;
