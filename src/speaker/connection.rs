//! A TCP connection as a task: bytes in both directions until either side has had enough.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use portolan_bgp::{ConnId, PeerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::sockopt;

/// What a connection tells the speaker's task.
pub(super) enum Event {
    Connected {
        local: SocketAddr,
        remote: SocketAddr,
    },
    Input(Vec<u8>),
    /// The bytes of one [`Handle::send`] are with the kernel.
    Sent,
    Closed(String),
}

/// The speaker's end. Dropping it closes the connection, after what was sent is written.
pub(super) struct Handle {
    writes: mpsc::UnboundedSender<Vec<u8>>,
    _open: oneshot::Sender<()>,
}

/// The connection's end.
pub(super) struct Io {
    writes: mpsc::UnboundedReceiver<Vec<u8>>,
    closing: oneshot::Receiver<()>,
    speaker: SpeakerEnd,
}

/// Where a connection reports to.
struct SpeakerEnd {
    conn: ConnId,
    events: mpsc::Sender<(ConnId, Event)>,
}

/// A peer that does not take the last bytes, or does not close its side, is left after this.
const CLOSE_TIME: Duration = Duration::from_secs(2);

const READ: usize = 16 * 1024;

pub(super) fn pair(conn: ConnId, events: mpsc::Sender<(ConnId, Event)>) -> (Handle, Io) {
    // Unbounded in type only: the speaker hands out the next bytes when the last are written.
    let (writes, to_write) = mpsc::unbounded_channel();
    let (open, closing) = oneshot::channel();
    (Handle { writes, _open: open }, Io { writes: to_write, closing, speaker: SpeakerEnd { conn, events } })
}

impl Handle {
    pub(super) fn send(&self, bytes: Vec<u8>) {
        // The other end is gone only when its Closed event is on the way.
        let _ = self.writes.send(bytes);
    }
}

impl SpeakerEnd {
    async fn tell(&self, event: Event) {
        // Nobody listens when the speaker's task has ended, and this one with it.
        let _ = self.events.send((self.conn, event)).await;
    }
}

impl Io {
    pub(super) async fn dial(mut self, peer: PeerConfig) {
        let connected = tokio::select! {
            connected = connect(&peer) => connected,
            _ = &mut self.closing => return,
        };
        match connected {
            Ok((stream, local, remote)) => {
                self.speaker.tell(Event::Connected { local, remote }).await;
                self.run(stream).await;
            }
            Err(error) => {
                self.speaker.tell(Event::Closed(format!("connecting to {}: {error}", peer.remote))).await;
            }
        }
    }

    pub(super) async fn run(mut self, stream: TcpStream) {
        let (mut read, mut write) = stream.into_split();
        let ended = tokio::select! {
            reason = receive(&read, &self.speaker) => Some(reason),
            written = write_all(&mut write, &mut self.writes, &self.speaker) => match written {
                Ok(()) => {
                    finish(&mut read, write).await;
                    None
                }
                Err(error) => Some(format!("connection: {error}")),
            },
            () = overdue(&mut self.closing) => None,
        };
        if let Some(reason) = ended {
            self.speaker.tell(Event::Closed(reason)).await;
        }
    }
}

async fn connect(peer: &PeerConfig) -> io::Result<(TcpStream, SocketAddr, SocketAddr)> {
    let stream = sockopt::socket(peer)?.connect(peer.remote).await?;
    let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
    Ok((stream, local, remote))
}

/// Until the connection ends; the reason why.
async fn receive(read: &OwnedReadHalf, speaker: &SpeakerEnd) -> String {
    loop {
        // No buffer while nothing comes: most sessions are silent most of the time.
        if let Err(error) = read.readable().await {
            return format!("connection: {error}");
        }
        let mut bytes = vec![0; READ];
        match read.try_read(&mut bytes) {
            Ok(0) => return "the peer closed the connection".into(),
            Ok(n) => {
                bytes.truncate(n);
                speaker.tell(Event::Input(bytes)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return format!("connection: {error}"),
        }
    }
}

/// Until the handle is dropped and everything is written.
async fn write_all(
    write: &mut OwnedWriteHalf,
    writes: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    speaker: &SpeakerEnd,
) -> io::Result<()> {
    while let Some(bytes) = writes.recv().await {
        write.write_all(&bytes).await?;
        speaker.tell(Event::Sent).await;
    }
    Ok(())
}

/// Closing with unread bytes would reset the connection, and a NOTIFICATION on its way would be lost.
async fn finish(read: &mut OwnedReadHalf, mut write: OwnedWriteHalf) {
    if write.shutdown().await.is_ok() {
        let _ = timeout(CLOSE_TIME, tokio::io::copy(read, &mut tokio::io::sink())).await;
    }
}

async fn overdue(closing: &mut oneshot::Receiver<()>) {
    let _ = closing.await;
    sleep(CLOSE_TIME).await;
}
