//! Tries seeds on every mutant until one is condemned as it should be, and the same seeds on the sound build.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use comfy_table::{Table, presets};
use hexkv_client::console;
use hexkv_store::mutants::Mutant;

use super::{MutantsArguments, sentence::accuser};
use crate::sim::{parent, plan::Reduction};

/// What became of one mutant.
#[derive(Debug)]
struct Fate {
    mutant: Mutant,
    /// The seed that killed it, and who condemned it.
    killed: Option<(u64, String)>,
    /// Whoever else condemned it before, with the number of seeds.
    others: BTreeMap<String, u64>,
    seeds: u64,
}

/// Runs the campaign and prints its table. Whether every mutant was killed by a checker that should see it, and the
/// sound build passed all seeds that were used.
///
/// # Errors
/// No process can be started; a name that is no mutant.
pub fn run(arguments: &MutantsArguments) -> io::Result<bool> {
    let mutants = chosen(&arguments.only)?;
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let fates = Mutex::new(Vec::new());
    let sound = Sound::default();
    thread::scope(|scope| {
        let work = || {
            while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                let fate = try_seeds(*mutant, arguments, &sound)?;
                console::print(&told(&fate));
                fates.lock().unwrap_or_else(PoisonError::into_inner).push(fate);
            }
            Ok::<(), io::Error>(())
        };
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let mut fates = fates.into_inner().unwrap_or_else(PoisonError::into_inner);
    fates.sort_by_key(|fate| Mutant::ALL.iter().position(|m| *m == fate.mutant));
    print(&fates);
    let killed = fates.iter().filter(|fate| fate.killed.is_some()).count();
    let failed = sound.failed();
    console::print(&format!(
        "{killed} of {} mutants killed in {:.0} s; the sound build passed {} of the {} seeds used",
        fates.len(),
        began.elapsed().as_secs_f64(),
        sound.count() - failed.len(),
        sound.count()
    ));
    let elsewhere: Vec<&str> = Mutant::ALL.iter().filter(|m| !m.in_simulation()).map(|m| m.name()).collect();
    console::print(&format!(
        "not for the simulation, but for unit tests and runs of real processes: {}",
        elsewhere.join(", ")
    ));
    for (seed, failure) in &failed {
        console::print(&format!("the sound build FAILED seed {seed}: {failure}"));
    }
    Ok(killed == fates.len() && failed.is_empty())
}

fn chosen(only: &[String]) -> io::Result<Vec<Mutant>> {
    let unknown = only.iter().find(|name| !Mutant::ALL.iter().any(|m| m.name() == *name));
    if let Some(name) = unknown {
        let names: Vec<&str> = Mutant::ALL.iter().map(|m| m.name()).collect();
        return Err(io::Error::other(format!("{name:?} is no mutant; these are: {}", names.join(", "))));
    }
    let named = |m: &Mutant| only.iter().any(|name| name == m.name());
    Ok(Mutant::ALL.into_iter().filter(|m| if only.is_empty() { m.in_simulation() } else { named(m) }).collect())
}

fn try_seeds(mutant: Mutant, arguments: &MutantsArguments, sound: &Sound) -> io::Result<Fate> {
    let mut fate = Fate { mutant, killed: None, others: BTreeMap::new(), seeds: 0 };
    for seed in arguments.first_seed..arguments.first_seed + arguments.budget_seeds {
        let report = parent::child(seed, &Reduction::default(), Some(mutant.name()))?;
        fate.seeds += 1;
        // A seed that fails in the sound build, too, says nothing about the mutant.
        let passes = sound.passes(seed)?;
        let Some(failure) = report.failure.filter(|_| passes) else { continue };
        let accuser = accuser(&failure).to_owned();
        if mutant.expected().contains(&accuser.as_str()) {
            fate.killed = Some((seed, accuser));
            break;
        }
        *fate.others.entry(accuser).or_default() += 1;
    }
    Ok(fate)
}

/// What the sound build did with each seed, run once.
#[derive(Default)]
struct Sound(Mutex<BTreeMap<u64, Option<String>>>);

impl Sound {
    fn passes(&self, seed: u64) -> io::Result<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&seed).map(Option::is_none);
        if let Some(passes) = known {
            return Ok(passes);
        }
        let failure = parent::child(seed, &Reduction::default(), None)?.failure;
        let passes = failure.is_none();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, failure);
        Ok(passes)
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn failed(&self) -> Vec<(u64, String)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(|(seed, failure)| Some((*seed, failure.clone()?))).collect()
    }
}

fn told(fate: &Fate) -> String {
    match &fate.killed {
        Some((seed, accuser)) => format!("{}: killed by {accuser} with seed {seed}", fate.mutant.name()),
        None => format!("{}: SURVIVED {} seeds", fate.mutant.name(), fate.seeds),
    }
}

fn print(fates: &[Fate]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["MUTANT", "CLASS", "KILLED BY", "SEED", "SEEDS USED", "ALSO SEEN BY"]);
    for fate in fates {
        let (accuser, seed) = match &fate.killed {
            Some((seed, accuser)) => (accuser.as_str(), seed.to_string()),
            None => ("SURVIVED", "-".to_owned()),
        };
        let others: Vec<String> = fate.others.iter().map(|(who, seeds)| format!("{who} ({seeds})")).collect();
        table.add_row([
            fate.mutant.name().to_owned(),
            fate.mutant.class().to_string(),
            accuser.to_owned(),
            seed,
            fate.seeds.to_string(),
            others.join(", "),
        ]);
    }
    for line in table.lines() {
        console::print(line.trim_end());
    }
}
