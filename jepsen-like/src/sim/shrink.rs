//! Makes a failing seed smaller: faults first, then operations.

use std::io;

use super::{fault::Fault, plan::Reduction, report::Report};

/// Most runs for one seed.
const RUNS_MAX: u32 = 40;

/// The smallest run found that still fails in the same way.
#[derive(Debug)]
pub struct Shrunk {
    /// What is left out.
    pub reduction: Reduction,
    /// What came of it.
    pub report: Report,
    /// How many runs it took.
    pub runs: u32,
}

/// Looks for a smaller run that fails in the same way as `failed`, which was run with `base` left out.
///
/// # Errors
/// Those of `run`.
pub fn shrink(
    failed: &Report,
    base: &Reduction,
    mut run: impl FnMut(&Reduction) -> io::Result<Report>,
) -> io::Result<Shrunk> {
    let mut best = Shrunk { reduction: base.clone(), report: failed.clone(), runs: 0 };
    let mut attempt = |best: &mut Shrunk, reduction: Reduction| -> io::Result<bool> {
        if best.runs >= RUNS_MAX {
            return Ok(false);
        }
        best.runs += 1;
        let report = run(&reduction)?;
        let same = kind(&report).is_some() && kind(&report) == kind(failed);
        if same {
            (best.reduction, best.report) = (reduction, report);
        }
        Ok(same)
    };
    let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|f| failed.faults.contains(f.name())).collect();
    // One fault may need another gone: go round until nothing more can be left out.
    let mut progress = true;
    while std::mem::take(&mut progress) {
        for fault in faults.clone() {
            let mut reduction = best.reduction.clone();
            reduction.without.insert(fault);
            if attempt(&mut best, reduction)? {
                faults.retain(|f| *f != fault);
                progress = true;
            }
        }
    }
    let mut cut = best.report.operations;
    while cut > 0 {
        let fewer = best.report.operations.saturating_sub(cut);
        let reduction = Reduction { operations: Some(fewer), ..best.reduction.clone() };
        if fewer >= best.report.operations || !attempt(&mut best, reduction)? {
            cut /= 2;
        }
    }
    Ok(best)
}

/// Failures of one kind begin with the same word.
fn kind(report: &Report) -> Option<&str> {
    report.failure.as_deref()?.split(':').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failure: Option<&str>, operations: usize) -> Report {
        Report {
            seed: 1,
            trace: String::new(),
            failure: failure.map(str::to_string),
            faults: ["loss", "kill", "clock"].into_iter().map(str::to_string).collect(),
            strikes: 3,
            operations,
            simulated_ms: 0,
            healed_after_ms: None,
            longest_write_ms: 0,
            writes_judged: 0,
            real_ms: 0,
        }
    }

    #[test]
    fn what_does_not_matter_is_left_out_and_what_does_stays() {
        let failed = report(Some("log-matching: x"), 300);
        let shrunk = shrink(&failed, &Reduction::default(), |reduction| {
            let operations = reduction.operations.unwrap_or(300);
            // It takes the kill and seventeen operations; without the clock fault something else goes wrong.
            let fails = !reduction.without.contains(&Fault::Kill) && operations >= 17;
            let other = reduction.without.contains(&Fault::Clock);
            let failure = fails.then_some(if other { "panic: y" } else { "log-matching: x" });
            Ok(report(failure, operations))
        });
        let shrunk = shrunk.unwrap();
        assert_eq!(shrunk.reduction.without, [Fault::Loss].into());
        assert_eq!(shrunk.reduction.operations, Some(17));
        assert!(shrunk.runs <= RUNS_MAX);
    }
}
