//! What all charts over time share: the axis of time, bands of faults, marks of leader changes.

use maud::{Markup, html};

use super::LeaderChange;
use super::faults::{FAULTS_SHOWN_MAX, Fault};
use super::text::{self, px};

/// Width of a chart's drawing; on the page it scales, and scrolls where there is no room.
pub(super) const WIDTH: f64 = 1000.0;
/// Where the plots begin: left of it are the numbers of their axes.
pub(super) const LEFT: f64 = 64.0;
/// Where the plots end.
pub(super) const RIGHT: f64 = 988.0;
/// Leader changes drawn; the rest are counted.
pub(super) const LEADER_MARKS_MAX: usize = 400;

/// Rows above the plots in which faults that overlap stand one above the other; more share the last row.
const ROWS_MAX: usize = 6;
/// Height of such a row, and of the row of leaders.
const ROW: f64 = 17.0;
/// Space between the marks of the axis of time, at least.
const TICK_SPACE: f64 = 88.0;
/// Width of a character of a label, at most.
const CHARACTER: f64 = 6.2;

/// The axis of time with what happened to the cluster on it.
pub(super) struct Frame<'a> {
    span_ns: u64,
    faults: &'a [Fault],
    /// The row of each fault drawn.
    rows: Vec<usize>,
    leaders: &'a [LeaderChange],
}

impl<'a> Frame<'a> {
    /// For charts of a run of `span_ns` (above 0).
    pub(super) fn new(span_ns: u64, faults: &'a [Fault], leaders: &'a [LeaderChange]) -> Self {
        let faults = &faults[..faults.len().min(FAULTS_SHOWN_MAX)];
        let leaders = &leaders[..leaders.len().min(LEADER_MARKS_MAX)];
        Self { span_ns, rows: rows(faults), faults, leaders }
    }

    /// Where a moment is.
    pub(super) fn x(&self, time_ns: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * (time_ns as f64 / self.span_ns as f64).min(1.0)
    }

    /// Height of the rows that [`Self::strips`] draws.
    pub(super) fn strips_height(&self) -> f64 {
        let fault_rows = self.rows.iter().max().map_or(0, |row| row + 1);
        let leader_rows = usize::from(!self.leaders.is_empty());
        (fault_rows + leader_rows) as f64 * ROW + 6.0
    }

    /// The rows at the top: who leads, and which fault is on, each with its name where it fits.
    pub(super) fn strips(&self) -> Markup {
        let leader_rows = usize::from(!self.leaders.is_empty());
        html! {
            @if leader_rows > 0 { text.axis x=(LEFT - 6.0) y="13" text-anchor="end" { "leader" } }
            @for (position, leader) in self.leaders.iter().enumerate() {
                @let end = self.leaders.get(position + 1).map_or(self.span_ns, |next| next.time_ns);
                (self.strip(if position % 2 == 0 { "leader even" } else { "leader odd" }, 0, (leader.time_ns, end),
                    &format!("{} t{}", text::bounded(&leader.node, 24), leader.term),
                    &format!("{} leads in term {} from {}", text::clean(&leader.node), leader.term,
                        text::moment(leader.time_ns))))
            }
            @if !self.faults.is_empty() {
                text.axis x=(LEFT - 6.0) y=(px(leader_rows as f64 * ROW + 13.0)) text-anchor="end" { "faults" }
            }
            @for (fault, row) in self.faults.iter().zip(&self.rows) {
                (self.strip("fault", leader_rows + row, (fault.start_ns, fault.stop_ns.unwrap_or(fault.start_ns)),
                    &format!("{} {}", fault.number, fault.name), &fault.description()))
            }
        }
    }

    /// One bar of a row; its label is cut to what fits into it.
    fn strip(&self, class: &str, row: usize, (start_ns, end_ns): (u64, u64), label: &str, title: &str) -> Markup {
        let x = self.x(start_ns);
        let width = (self.x(end_ns) - x).max(2.0);
        let room = ((width - 6.0) / CHARACTER).max(0.0) as usize;
        let y = row as f64 * ROW;
        html! {
            g {
                title { (title) }
                rect.strip.(class) x=(px(x)) y=(px(y + 1.0)) width=(px(width)) height=(px(ROW - 2.0)) {}
                @if label.chars().count() <= room {
                    text.label x=(px(x + 4.0)) y=(px(y + 12.5)) { (label) }
                } @else if room >= 5 {
                    text.label x=(px(x + 4.0)) y=(px(y + 12.5)) { (text::bounded(label, room - 1)) }
                }
            }
        }
    }

    /// Behind a plot: bands of faults, lines of leader changes, marks of time.
    pub(super) fn backdrop(&self, top: f64, bottom: f64) -> Markup {
        let height = px(bottom - top);
        html! {
            @for fault in self.faults {
                @let x = self.x(fault.start_ns);
                @if let Some(stop_ns) = fault.stop_ns {
                    rect.band data-fault=(fault.number) x=(px(x)) y=(px(top)) width=(px((self.x(stop_ns) - x).max(1.0)))
                        height=(height) {}
                } @else {
                    line.moment data-fault=(fault.number) x1=(px(x)) x2=(px(x)) y1=(px(top)) y2=(px(bottom)) {}
                }
            }
            @for leader in self.leaders {
                @let x = px(self.x(leader.time_ns));
                line.change x1=(x) x2=(x) y1=(px(top)) y2=(px(bottom)) {}
            }
            line.rule x1=(LEFT) x2=(RIGHT) y1=(px(bottom)) y2=(px(bottom)) {}
        }
    }

    /// The marks of the axis of time, below the lowest plot.
    pub(super) fn time_axis(&self, y: f64) -> Markup {
        let seconds = self.span_ns as f64 / 1e9;
        let step = readable(seconds * TICK_SPACE / (RIGHT - LEFT));
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (seconds / step) as usize + 1;
        html! {
            @for tick in 0..ticks {
                @let at = tick as f64 * step;
                @let x = px(self.x((at * 1e9) as u64));
                line.rule x1=(x) x2=(x) y1=(px(y)) y2=(px(y + 4.0)) {}
                text.axis x=(x) y=(px(y + 16.0)) text-anchor="middle" { (format!("{at:.digits$} s")) }
            }
        }
    }
}

/// Faults that overlap get different rows, as long as there are rows.
fn rows(faults: &[Fault]) -> Vec<usize> {
    let mut free_from = [0_u64; ROWS_MAX];
    let mut rows = Vec::with_capacity(faults.len());
    for fault in faults {
        let row = free_from.iter().position(|free| *free <= fault.start_ns).unwrap_or(ROWS_MAX - 1);
        free_from[row] = free_from[row].max(fault.stop_ns.unwrap_or(fault.start_ns));
        rows.push(row);
    }
    rows
}

/// The next number above that is 1, 2 or 5 times a power of ten.
pub(super) fn readable(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_one_two_or_five() {
        for (least, step) in [(0.7, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (51.0, 100.0), (0.03, 0.05)] {
            assert!((readable(least) - step).abs() < step * 1e-9, "{least}: {}", readable(least));
        }
    }
}
