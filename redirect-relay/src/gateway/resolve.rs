//! Host names of gateways: resolved as often as their records say, and the last good answer kept when DNS fails.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{Resolver as Hickory, config::LookupIpStrategy, net::runtime::TokioRuntimeProvider};
use tokio::time::{Instant, timeout};

use crate::{
    domain::Domain,
    gateway::opening::OpenReason,
    limits::{ADDRESSES_MAX, DNS_RETRY, DNS_TIME, NAMES_MAX, TTL_MAX, TTL_MIN},
};

/// The addresses of a name and how long they may be believed, or why there are none.
pub(crate) type Answer = Result<(Vec<IpAddr>, Duration), String>;

/// One question to DNS.
pub(crate) trait Lookup: Send + Sync {
    fn lookup<'a>(&'a self, name: &'a str) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;
}

pub(crate) struct Resolver {
    lookup: Box<dyn Lookup>,
    known: Mutex<HashMap<Domain, Known>>,
}

#[derive(Clone)]
struct Known {
    addresses: Vec<IpAddr>,
    /// No question before.
    until: Instant,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    pub(crate) fn new(lookup: impl Lookup + 'static) -> Self {
        Self { lookup: Box::new(lookup), known: Mutex::default() }
    }

    /// The addresses of `name`, at least one, in turns of both families, IPv6 first (RFC 8305 section 4).
    pub(crate) async fn resolve(&self, name: &Domain) -> Result<Vec<IpAddr>, OpenReason> {
        let known = self.known().get(name).cloned();
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.until) {
            return found(known.addresses.clone());
        }
        let answer = timeout(DNS_TIME, self.lookup.lookup(name.as_str())).await;
        let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let (addresses, ttl, fault) = match answer {
            Ok((addresses, ttl)) if !addresses.is_empty() => (interleave(addresses), ttl.clamp(TTL_MIN, TTL_MAX), None),
            other => {
                let fault = other.err().map_or(OpenReason::NoAddress, OpenReason::Dns);
                let addresses = known.map(|known| known.addresses).unwrap_or_default();
                if !addresses.is_empty() {
                    tracing::warn!(host = %name, %fault, "the last good addresses of a gateway are used");
                }
                (addresses, DNS_RETRY, Some(fault))
            }
        };
        let mut all = self.known();
        if all.len() >= NAMES_MAX && !all.contains_key(name) {
            let now = Instant::now();
            all.retain(|_, known| now < known.until);
        }
        if all.len() < NAMES_MAX {
            all.insert(name.clone(), Known { addresses: addresses.clone(), until: Instant::now() + ttl });
        }
        match fault {
            Some(fault) if addresses.is_empty() => Err(fault),
            _ => Ok(addresses),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Domain, Known>> {
        // A panic elsewhere leaves no half-written entry behind.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, OpenReason> {
    if addresses.is_empty() { Err(OpenReason::NoAddress) } else { Ok(addresses) }
}

fn interleave(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut mixed = Vec::new();
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let pair = [six.next(), four.next()];
        if pair.iter().all(Option::is_none) || mixed.len() >= ADDRESSES_MAX {
            mixed.truncate(ADDRESSES_MAX);
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten().filter(|ip| !mixed.contains(ip)).collect::<Vec<_>>());
    }
}

/// The system's servers and hosts file, read anew after a failure: a router's own addresses and servers change.
#[derive(Default)]
pub(crate) struct SystemLookup {
    resolver: Mutex<Option<Arc<Hickory<TokioRuntimeProvider>>>>,
}

impl SystemLookup {
    fn resolver(&self) -> Result<Arc<Hickory<TokioRuntimeProvider>>, String> {
        let mut resolver = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = &*resolver {
            return Ok(Arc::clone(resolver));
        }
        let mut builder = Hickory::builder_tokio().map_err(|error| error.to_string())?;
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // The cache is ours: it keeps the last good answer.
        options.cache_size = 0;
        let built = Arc::new(builder.build().map_err(|error| error.to_string())?);
        *resolver = Some(Arc::clone(&built));
        Ok(built)
    }
}

impl Lookup for SystemLookup {
    fn lookup<'a>(&'a self, name: &'a str) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
        Box::pin(async move {
            let answer = match self.resolver() {
                // With a final dot no search domain is tried.
                Ok(resolver) => resolver.lookup_ip(format!("{name}.")).await.map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            match answer {
                Ok(found) => {
                    let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
                    Ok((found.iter().collect(), ttl))
                }
                Err(error) => {
                    *self.resolver.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    Err(error)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Gives its answers one after the other; `None` is silence.
    struct Scripted(Mutex<Vec<Option<Answer>>>);

    impl Lookup for Scripted {
        fn lookup<'a>(&'a self, _name: &'a str) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
            let answer = self.0.lock().unwrap().pop();
            Box::pin(async move {
                if let Some(answer) = answer.expect("no more questions than answers") {
                    return answer;
                }
                std::future::pending().await
            })
        }
    }

    fn resolver(answers: &[Option<(&[&str], u64)>]) -> Resolver {
        let answer = |answer: &Option<(&[&str], u64)>| {
            answer.map(|(ips, ttl)| {
                if ips == ["fail"] {
                    return Err("SERVFAIL".to_owned());
                }
                Ok((ips.iter().map(|ip| ip.parse().unwrap()).collect(), Duration::from_secs(ttl)))
            })
        };
        Resolver::new(Scripted(Mutex::new(answers.iter().rev().map(answer).collect())))
    }

    async fn check(resolver: &Resolver, expected: Result<&[&str], &str>) {
        let name = "mx.example".parse().unwrap();
        let got = resolver.resolve(&name).await;
        let got = got.map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|e| e.to_string());
        assert_eq!(got, expected.map(|ips| ips.iter().map(|ip| (*ip).to_owned()).collect()).map_err(str::to_owned));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_its_time() {
        let resolver = resolver(&[
            Some((&["192.0.2.1"], 60)),
            Some((&["192.0.2.2"], 0)),
            Some((&["192.0.2.3"], 86_400)),
            Some((&["192.0.2.4"], 1)),
        ]);
        check(&resolver, Ok(&["192.0.2.1"])).await;
        advance(Duration::from_secs(59)).await;
        check(&resolver, Ok(&["192.0.2.1"])).await;
        advance(Duration::from_secs(2)).await;
        check(&resolver, Ok(&["192.0.2.2"])).await;
        // A TTL of 0 is not a question for each message, and a huge one not an answer for ever.
        advance(TTL_MIN / 2).await;
        check(&resolver, Ok(&["192.0.2.2"])).await;
        advance(TTL_MIN / 2).await;
        check(&resolver, Ok(&["192.0.2.3"])).await;
        advance(TTL_MAX + Duration::from_secs(1)).await;
        check(&resolver, Ok(&["192.0.2.4"])).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_is_kept_and_dns_is_not_asked_for_each_message() {
        let resolver = resolver(&[
            Some((&["192.0.2.1"], 5)),
            Some((&["fail"], 0)),
            None,
            Some((&[], 5)),
            Some((&["192.0.2.2"], 5)),
        ]);
        check(&resolver, Ok(&["192.0.2.1"])).await;
        for _ in 0..3 {
            advance(DNS_RETRY + Duration::from_secs(1)).await;
            check(&resolver, Ok(&["192.0.2.1"])).await;
            check(&resolver, Ok(&["192.0.2.1"])).await;
        }
        advance(DNS_RETRY + Duration::from_secs(1)).await;
        check(&resolver, Ok(&["192.0.2.2"])).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_never_had_an_address() {
        let resolver = resolver(&[Some((&["fail"], 0)), None, Some((&[], 5))]);
        check(&resolver, Err("SERVFAIL")).await;
        check(&resolver, Err("the name has no address")).await;
        advance(DNS_RETRY).await;
        check(&resolver, Err("no answer in time")).await;
        advance(DNS_RETRY).await;
        check(&resolver, Err("the name has no address")).await;
    }

    #[test]
    fn families_take_turns() {
        let check = |given: &[&str], expected: &[&str]| {
            let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
            assert_eq!(interleave(parse(given)), parse(expected));
        };
        check(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], &["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
        check(&["192.0.2.1", "192.0.2.1"], &["192.0.2.1"]);
        let many: Vec<_> = (0..100).map(|host| format!("192.0.2.{host}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        check(&many, &many[..ADDRESSES_MAX]);
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let resolver = Resolver::new(SystemLookup::default());
        let found = resolver.resolve(&"localhost".parse().unwrap()).await.unwrap();
        assert!(found.contains(&"127.0.0.1".parse().unwrap()), "{found:?}");
    }
}
