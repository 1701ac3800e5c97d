//! All machines lose power in the middle of traffic, only the disks of a majority of the voters are left, and an operator begins
//! a new cluster with the best of them: nothing that was acknowledged may be missing. The recovery may lose power, too.

use std::{
    io,
    path::{Path, PathBuf},
};

use hexkv_server::offline::{
    BUMP_REVISION_DEFAULT, OfflineError,
    recover::{Operator, Wanted, recover},
};
use hexkv_store::{
    StoreError,
    driver::Driver,
    fs::{FaultyFs, Fs, copy_file},
};
use openraft::async_runtime::WatchReceiver;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;

use super::{
    cluster::Off,
    fault::Fault,
    run::{HEAL_MS_MAX, Run},
};

/// Most operations that clients begin before the power goes.
const OPERATIONS: usize = 50;
/// For so long, in milliseconds: less than a silent voter keeps its seat at the least.
const TRAFFIC_MS: std::ops::Range<u64> = 20..800;
/// Longest wait for the founder to lead its cluster, in simulated milliseconds.
const BEGIN_MS_MAX: u64 = 20_000;
/// Changing operations of the disk within which a recovery that is to lose power does so.
const POWER_CUT_WITHIN: u64 = 120;

/// Strikes as `seed` decides, and waits until the new cluster is whole.
pub(super) fn strike(run: &mut Run, seed: u64) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes = run.cluster.hosts.len();
    // One that follows hears nothing of what is acknowledged last, and its disk may be left.
    let leader = run.cluster.leader();
    let followers: Vec<usize> = (0..nodes).filter(|node| Some(*node) != leader).collect();
    let silenced = run.cluster.links.around(followers[rng.random_range(0..followers.len())]);
    run.cluster.links.cut(&run.cluster.sim, &silenced);
    traffic(run, &mut rng)?;
    run.cluster.links.mend(&run.cluster.sim, &silenced);
    let Some(voters) = voters(run) else { return Ok(()) };
    for node in 0..nodes {
        run.cluster.switch_off(node, Off::Power(rng.random()));
        run.workload.node_lost(&mut run.cluster, node);
    }
    let mut left = voters.clone();
    left.shuffle(&mut rng);
    left.truncate(voters.len() / 2 + 1);
    let heir = left[0];
    let disk = operate(run, &left, &mut rng).map_err(|why| format!("the recovery from {left:?}: {why}"))?;
    for host in &run.cluster.hosts {
        host.lose(FaultyFs::new());
    }
    run.cluster.hosts[heir].lose(disk);
    run.workload.note_fault(&mut run.cluster, Fault::LostQuorum.name(), json!({"left": left, "heir": heir}));
    begin(run, heir)?;
    for node in (0..nodes).filter(|node| *node != heir) {
        run.cluster.switch_on(node);
    }
    let factor = run.cluster.plan.replication_factor;
    run.until(HEAL_MS_MAX, "the recovered cluster is whole", |run| run.cluster.unsettled(factor))
}

/// Clients work for a while, so that something is under way when the power goes.
fn traffic(run: &mut Run, rng: &mut StdRng) -> Result<(), String> {
    run.workload.allow(OPERATIONS.min(run.cluster.plan.operations));
    let end = run.cluster.now_ms() + rng.random_range(TRAFFIC_MS);
    while run.cluster.now_ms() < end {
        run.workload.begin(&mut run.cluster);
        run.step()?;
    }
    run.workload.forbid();
    Ok(())
}

/// Who votes; None while that is being changed.
fn voters(run: &Run) -> Option<Vec<usize>> {
    let leader = run.cluster.core(run.cluster.leader()?)?;
    let sets = leader.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().clone();
    let [set] = &sets[..] else { return None };
    let nodes = 0..run.cluster.hosts.len();
    Some(nodes.filter(|i| run.cluster.core(*i).is_some_and(|core| set.contains(&core.id))).collect())
}

/// An operator who goes on with the best, whatever it is.
struct Agrees;

impl Operator for Agrees {
    fn tell(&mut self, _text: &str) {}

    fn confirm(&mut self, _wanted: &Wanted) -> Result<(), OfflineError> {
        Ok(())
    }
}

/// What the operator does on the machine of the first of `left`, as long as no node runs: answers its disk.
fn operate(run: &Run, left: &[usize], rng: &mut StdRng) -> Result<FaultyFs, String> {
    let heir = &run.cluster.hosts[left[0]];
    let mut disk = heir.disk();
    let mut from = Vec::new();
    for node in left {
        let to = PathBuf::from(format!("/lost/{node}"));
        let data_dir = &run.cluster.hosts[*node].config.data_dir;
        copy_tree((&run.cluster.hosts[*node].disk(), data_dir), (&disk, &to)).map_err(|e| e.to_string())?;
        from.push(to);
    }
    let before = Path::new("/lost/before");
    let aside = disk.rename(&heir.config.data_dir, before).and_then(|()| disk.sync_dir(Path::new("/")));
    aside.and_then(|()| disk.sync_dir(Path::new("/lost"))).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    let mut lost_power = false;
    if rng.random_bool(0.5) {
        disk.stop_at_operation(disk.operations() + rng.random_range(1..=POWER_CUT_WITHIN));
    }
    loop {
        let world = heir.environment(disk.clone(), Driver::Task);
        match runtime.block_on(recover(&world, &heir.config, &from, BUMP_REVISION_DEFAULT, &mut Agrees)) {
            // The power is back, and the operator tries once more.
            _ if disk.stopped() => disk = disk.crash(rng.random()),
            Ok(()) => return Ok(disk),
            // The power was lost when all but the last word was written.
            Err(OfflineError::Store(StoreError::NotEmpty { .. })) if lost_power => return Ok(disk),
            Err(e) => return Err(e.to_string()),
        }
        lost_power = true;
    }
}

/// Copies a directory to where there is none, durably.
fn copy_tree(from: (&dyn Fs, &Path), to: (&dyn Fs, &Path)) -> io::Result<()> {
    to.0.create_dir_all(to.1)?;
    for inside in from.0.list(from.1)? {
        let name = inside.file_name().expect("what is listed has a name");
        let target = to.1.join(name);
        if from.0.is_dir(&inside) {
            copy_tree((from.0, &inside), (to.0, &target))?;
        } else {
            copy_file((from.0, &inside), (to.0, &target))?;
            to.0.open(&target, true)?.sync_data()?;
        }
    }
    to.0.sync_dir(to.1)
}

/// The founder is started alone, until it leads.
fn begin(run: &mut Run, heir: usize) -> Result<(), String> {
    let lost = run.cluster.cluster_id;
    run.cluster.switch_on(heir);
    run.until(BEGIN_MS_MAX, "the recovered node leads", |run| {
        let leads = run.cluster.core(heir).is_some_and(|core| core.is_leader());
        (!leads).then(|| format!("it ended: {:?}", run.cluster.hosts[heir].ended()))
    })?;
    let begun = run.cluster.hosts[heir].node().and_then(|node| node.identity().cluster_id);
    if begun.is_none() || begun == lost {
        return Err(format!("the recovered cluster is {begun:x?}, the lost one was {lost:x?}"));
    }
    run.cluster.cluster_id = begun;
    Ok(())
}
