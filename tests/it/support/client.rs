//! HTTP/1 by hand: what is sent is exactly what the test says.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A response as received.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The first value of a header; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }
}

/// A keep-alive connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the listener accepts");
        stream.set_nodelay(true).expect("a TCP option");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// `GET path` with this host.
    pub async fn get(&mut self, host: &str, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
            .await
    }

    /// Sends bytes and reads one response.
    pub async fn send(&mut self, request: &str) -> Response {
        self.write(request.as_bytes()).await;
        self.read().await.expect("a response")
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the connection is open");
    }

    /// True once the peer has closed, with nothing more to read.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(Duration::from_secs(5), self.stream.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    /// The next response; `None` where the connection ends first.
    pub async fn read(&mut self) -> Option<Response> {
        let head_end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            self.fill().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).into_owned();
        self.buffer.drain(..head_end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response {
            status,
            headers,
            body: String::new(),
        };
        let body = if response.header("transfer-encoding") == "chunked" {
            self.chunks().await?
        } else {
            let length = response.header("content-length").parse().unwrap_or(0);
            self.take(length).await?
        };
        response.body = String::from_utf8_lossy(&body).into_owned();
        Some(response)
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.buffer, b"\r\n") {
                    break end;
                }
                self.fill().await?;
            };
            let size = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            self.buffer.drain(..end + 2);
            let data = self.take(size + 2).await?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&data[..size]);
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    async fn fill(&mut self) -> Option<()> {
        let mut chunk = [0; 16384];
        let read = tokio::time::timeout(Duration::from_secs(10), self.stream.read(&mut chunk))
            .await
            .expect("an answer within 10 s")
            .ok()?;
        self.buffer.extend_from_slice(&chunk[..read]);
        (read > 0).then_some(())
    }
}

/// One request on a connection of its own.
pub async fn exchange(address: SocketAddr, request: &str) -> Response {
    Client::connect(address).await.send(request).await
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
