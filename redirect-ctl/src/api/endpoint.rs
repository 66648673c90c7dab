//! Where a client finds redirectd, and how it shows who it is.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use redirect_relay::gateway::Secret;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::desired::Invalid;

/// Where redirectd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// With TLS; the name is that of the certificate.
    Https {
        name: String,
        port: u16,
    },
    /// In clear, to loopback only.
    Http {
        name: String,
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Https { name, port } => write!(f, "https://{name}:{port}"),
            Self::Http { name, port } => write!(f, "http://{name}:{port}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid(format!("{text:?} is not a host: give unix:///PATH/TO/SOCKET or https://NAME:PORT"));
        match text.split_once("://").ok_or_else(wrong)? {
            ("unix", path) if Path::new(path).is_absolute() => Ok(Self::Unix(PathBuf::from(path))),
            ("https", place) => name_and_port(place).map(|(name, port)| Self::Https { name, port }).ok_or_else(wrong),
            ("http", place) => {
                let (name, port) = name_and_port(place).ok_or_else(wrong)?;
                if name == "localhost" || unbracketed(&name).parse().is_ok_and(|address: IpAddr| address.is_loopback())
                {
                    return Ok(Self::Http { name, port });
                }
                Err(Invalid(format!("{text:?} would send the token over the network in clear; give https://{place}")))
            }
            _ => Err(wrong()),
        }
    }
}

/// A name, an IPv4 address, or an IPv6 one in brackets; and a port.
fn name_and_port(place: &str) -> Option<(String, u16)> {
    let (name, port) = place.strip_suffix('/').unwrap_or(place).rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    ServerName::try_from(unbracketed(name)).ok()?;
    Some((name.to_owned(), port))
}

fn unbracketed(name: &str) -> &str {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// Files in PEM that TLS takes.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The authority that signed redirectd's certificate; the system's where none is given.
    pub authority: Option<PathBuf>,
    /// Our own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// An endpoint with the credentials for it.
#[derive(Clone)]
pub struct Transport {
    endpoint: Endpoint,
    token: Option<Secret>,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Transport {
    /// Reads the files, if the endpoint needs them.
    pub fn new(endpoint: Endpoint, token: Option<Secret>, files: &TlsFiles) -> Result<Self, Invalid> {
        let tls = match &endpoint {
            Endpoint::Https { .. } => Some(Arc::new(tls(files)?)),
            Endpoint::Unix(_) | Endpoint::Http { .. } => None,
        };
        Ok(Self { endpoint, token, tls })
    }

    pub(super) fn unix(path: &Path) -> Self {
        Self { endpoint: Endpoint::Unix(path.to_owned()), token: None, tls: None }
    }

    pub(super) fn name(&self) -> String {
        self.endpoint.to_string()
    }

    /// The value of `Host`.
    pub(super) fn host(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(_) => "redirectd".to_owned(),
            Endpoint::Https { name, port } | Endpoint::Http { name, port } => format!("{name}:{port}"),
        }
    }

    /// The value of `Authorization`.
    pub(super) fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {}", token.expose()))
    }

    pub(super) async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        match &self.endpoint {
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Endpoint::Http { name, port } => Ok(Box::new(TcpStream::connect((unbracketed(name), *port)).await?)),
            Endpoint::Https { name, port } => {
                let name = unbracketed(name);
                let stream = TcpStream::connect((name, *port)).await?;
                let config = self.tls.clone().ok_or_else(|| io::Error::other("TLS was not set up"))?;
                let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
                Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
            }
        }
    }
}

fn tls(files: &TlsFiles) -> Result<ClientConfig, Invalid> {
    let mut roots = RootCertStore::empty();
    match &files.authority {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| in_file(path, &format_args!("holds no authority's certificate: {error}")))?;
            }
        }
        // Those of the system that cannot be read are of no use, and others may do.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Invalid(error.to_string()))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let text = read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|_| in_file(key, &"holds no private key in PEM"))?;
    builder.with_client_auth_cert(certificates(certificate)?, private).map_err(|error| in_file(certificate, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|_| in_file(path, &"holds no certificate in PEM"))?;
    if found.is_empty() { Err(in_file(path, &"holds no certificate in PEM")) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, Invalid> {
    fs::read(path).map_err(|error| in_file(path, &error))
}

fn in_file(path: &Path, problem: &dyn fmt::Display) -> Invalid {
    Invalid(format!("{}: {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart() {
        let unix = |path: &str| Endpoint::Unix(path.into());
        let https = |name: &str, port| Endpoint::Https { name: name.to_owned(), port };
        let http = |name: &str, port| Endpoint::Http { name: name.to_owned(), port };
        for (text, endpoint) in [
            ("unix:///run/x", unix("/run/x")),
            ("https://router.example.net:8443", https("router.example.net", 8443)),
            ("https://10.0.0.1:8443/", https("10.0.0.1", 8443)),
            ("https://[fd00::1]:8443", https("[fd00::1]", 8443)),
            ("http://127.0.0.1:8080", http("127.0.0.1", 8080)),
            ("http://[::1]:8080", http("[::1]", 8080)),
            ("http://localhost:8080", http("localhost", 8080)),
        ] {
            assert_eq!(text.parse(), Ok(endpoint), "{text}");
        }
        for text in [
            "",
            "/run/x",
            "unix://x",
            "https://x",
            "https://:1",
            "https://a b:1",
            "https://x:0",
            "https://x:70000",
            "ftp://x:1",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().0;
            assert!(error.ends_with("is not a host: give unix:///PATH/TO/SOCKET or https://NAME:PORT"), "{error}");
        }
        let error = "http://10.0.0.1:8080".parse::<Endpoint>().unwrap_err().0;
        assert!(
            error.ends_with("would send the token over the network in clear; give https://10.0.0.1:8080"),
            "{error}"
        );
    }
}
