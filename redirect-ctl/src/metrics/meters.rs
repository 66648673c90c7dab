//! What only this process can count: requests, and how long its work takes. The kernel and the store know nothing of that.

use std::{sync::LazyLock, time::Duration};

use axum::http::Method;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Of the process, as all that is counted here is.
pub static METERS: LazyLock<Meters> = LazyLock::new(Meters::new);

/// Of a request. All have few values, whatever clients send: the path is that of the description, never a subscriber's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Empty for a path that the API does not have.
    pub route: String,
    pub method: &'static str,
    pub code: u16,
}

#[derive(Debug)]
pub struct Meters {
    pub requests: Family<RequestLabels, Counter>,
    pub request_time: Histogram,
    pub store_commit_time: Histogram,
    pub map_update_time: Histogram,
    pub collect_time: Histogram,
    pub relay_connect_time: Histogram,
}

/// The name of a method; "other" for those that the API never has, of which clients may make up any number.
pub fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known.into_iter().find(|name| method == name).unwrap_or("other")
}

impl Meters {
    fn new() -> Self {
        Self {
            requests: Family::default(),
            request_time: times(),
            store_commit_time: times(),
            map_update_time: times(),
            collect_time: times(),
            relay_connect_time: times(),
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "api_requests",
            "Requests that were answered, by path, method and status",
            self.requests.clone(),
        );
        let times = [
            ("api_request", "From a request to the head of its answer", &self.request_time),
            ("store_commit", "Until a change of the store is on the disk", &self.store_commit_time),
            ("map_update", "Writing to the kernel's tables what differs from the store", &self.map_update_time),
            ("collect", "One turn of the sweep over the flows", &self.collect_time),
            ("relay_connect", "Connecting to a relay that is asked whether it lives", &self.relay_connect_time),
        ];
        for (name, help, time) in times {
            registry.register_with_unit(name, help, Unit::Seconds, time.clone());
        }
    }
}

/// A tenth of a millisecond to 26 s.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 10))
}

/// Adds what `work` takes.
pub fn timed<R>(time: &Histogram, work: impl FnOnce() -> R) -> R {
    let begun = std::time::Instant::now();
    let result = work();
    observe(time, begun.elapsed());
    result
}

pub fn observe(time: &Histogram, took: Duration) {
    time.observe(took.as_secs_f64());
}
