//! One simulated machine: its disk, its clock, and the node that runs on it, life after life.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use hexkv_server::{config::Config, environment::Environment, node::Node, run};
use hexkv_store::{driver::Driver, fs::FaultyFs};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    discovery::Sight,
    environment::{Skew, simulated},
    request::{Answer, Request, ask},
    wires::SimulatedTransport,
};

/// Answers of all nodes to numbered requests, in the order in which they came.
pub type Answers = Rc<RefCell<Vec<(u64, Answer)>>>;

/// A request on its way into a node.
type Numbered = (u64, Request, Option<u64>);

/// How a node's life ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It did not even start.
    NotStarted(String),
    /// It was asked to stop, and did.
    Stopped,
    /// It could no longer keep its promises.
    Failed(String),
}

/// One simulated machine. Shared by the simulation's loop and the software that turmoil runs.
pub struct Host {
    /// The node's configuration.
    pub config: Config,
    driver: Driver,
    sight: Sight,
    transport: SimulatedTransport,
    /// Its wall clock.
    pub skew: Arc<Skew>,
    /// Counts starts.
    pub life: Cell<u64>,
    disk: RefCell<FaultyFs>,
    node: RefCell<Option<Arc<Node>>>,
    inbox: RefCell<Option<mpsc::UnboundedSender<Numbered>>>,
    stop: RefCell<CancellationToken>,
    ended: RefCell<Option<End>>,
    answers: Answers,
}

impl Host {
    /// A machine with an empty disk.
    pub fn new(config: Config, driver: Driver, sight: Sight, transport: SimulatedTransport, answers: Answers) -> Self {
        Self {
            config,
            driver,
            sight,
            transport,
            skew: Arc::default(),
            life: Cell::new(0),
            disk: RefCell::default(),
            node: RefCell::default(),
            inbox: RefCell::default(),
            stop: RefCell::default(),
            ended: RefCell::default(),
            answers,
        }
    }

    /// What runs on this machine runs in this, on `disk`.
    pub fn environment(&self, disk: FaultyFs, driver: Driver) -> Environment {
        simulated(disk, driver, self.skew.clone(), self.sight.clone(), self.transport.clone())
    }

    /// The node, once it has started.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.node.borrow().clone()
    }

    /// Its disk.
    pub fn disk(&self) -> FaultyFs {
        self.disk.borrow().clone()
    }

    /// How the node ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.ended.borrow().clone()
    }

    /// Hands a request to the node. False when there is none.
    pub fn submit(&self, number: u64, request: Request, cluster_id: Option<u64>) -> bool {
        let inbox = self.inbox.borrow();
        self.node.borrow().is_some()
            && inbox.as_ref().is_some_and(|inbox| inbox.send((number, request, cluster_id)).is_ok())
    }

    /// Asks the node to stop in order.
    pub fn stop(&self) {
        self.stop.borrow().cancel();
    }

    /// Whether it was asked to.
    pub fn is_stopping(&self) -> bool {
        self.stop.borrow().is_cancelled()
    }

    /// The node is gone, and its successor finds `disk`. To be called before turmoil drops its tasks, so that
    /// what they do in their last moment no longer reaches the disk.
    pub fn lose(&self, disk: FaultyFs) {
        self.disk.replace(disk);
        self.node.take();
        self.inbox.take();
        self.ended.take();
    }

    /// What runs on the machine: the node, until turmoil ends it. A node that ended by itself leaves the machine idle.
    pub async fn software(self: Rc<Self>) -> turmoil::Result {
        self.life.set(self.life.get() + 1);
        let stop = CancellationToken::new();
        self.stop.replace(stop.clone());
        let environment = self.environment(self.disk(), self.driver);
        let end = match run::start(environment, self.config.clone()).await {
            Err(e) => End::NotStarted(e.to_string()),
            Ok(running) => {
                let (inbox, requests) = mpsc::unbounded_channel();
                self.inbox.replace(Some(inbox));
                self.node.replace(Some(running.node.clone()));
                tokio::task::spawn_local(serve(running.node.clone(), requests, self.answers.clone()));
                match running.until(stop).await {
                    Ok(()) => End::Stopped,
                    Err(e) => End::Failed(e.to_string()),
                }
            }
        };
        self.ended.replace(Some(end));
        std::future::pending().await
    }
}

async fn serve(node: Arc<Node>, mut requests: mpsc::UnboundedReceiver<Numbered>, answers: Answers) {
    while let Some((number, request, cluster_id)) = requests.recv().await {
        let (node, answers) = (node.clone(), answers.clone());
        tokio::task::spawn_local(async move {
            let answer = ask(&node, request, cluster_id).await;
            answers.borrow_mut().push((number, answer));
        });
    }
}
