//! Who nginx asks, for each session, where its mail goes to (`ngx_mail_auth_http_module`): always to the sink.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket;
use redirect_tests::Namespace;

use super::site::SINK;

const STACK_BYTES: usize = 256 * 1024;
/// What a request may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(1);
const REQUEST_BYTES_MAX: usize = 4096;

/// Answers until it is dropped.
pub(crate) struct Authority {
    pub(crate) address: SocketAddrV4,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Authority {
    pub(crate) fn start(host: &Namespace) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2580);
        let listener = host.enter(|| TcpListener::bind(address)).with_context(|| format!("listen on {address}"))?;
        socket::listen(&listener, socket::Backlog::MAXALLOWABLE).context("lengthen the backlog")?;
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        let thread = host.spawn(STACK_BYTES, move || {
            // Shutting the listener down ends this with an error.
            while let Ok((stream, _)) = accepting.accept() {
                // Whoever gives up on its question needs no answer.
                let _ = answer(stream);
            }
        })?;
        Ok(Self { address, listener, thread: Some(thread) })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; REQUEST_BYTES_MAX];
    let mut length = 0;
    while !request[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[length..])? {
            0 => return Ok(()),
            octets => length += octets,
        }
    }
    let (ip, port) = (SINK.ip(), SINK.port());
    let answer = format!("HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: {ip}\r\nAuth-Port: {port}\r\n\r\n");
    stream.write_all(answer.as_bytes())?;
    stream.shutdown(Shutdown::Both)
}
