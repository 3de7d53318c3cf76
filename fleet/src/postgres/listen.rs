//! The connection for hints.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Client, Config};

use super::session::{Connect, Failure};
use crate::draw;
use crate::hub::{Listener, Source};
use crate::store::StoreError;

/// Where hints come from.
pub(super) struct Channels {
    pub(super) config: Config,
    pub(super) connect: Arc<dyn Connect>,
}

/// The connection for hints. Each name has a channel, which the names with the same end share; the message is the name.
pub(super) struct Subscriber {
    client: Client,
    messages: mpsc::UnboundedReceiver<String>,
    names: HashSet<String>,
    driver: AbortHandle,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(super) fn failed(error: tokio_postgres::Error) -> StoreError {
    Failure::Server(error).into_error()
}

/// As in `told`: names may be longer than channels, and so the channel has the last 13 characters, 52 bytes at most.
pub(super) fn channel(name: &str) -> String {
    let start = name.char_indices().rev().nth(12).map_or(0, |(index, _)| index);
    format!("dogpile_{}", &name[start..])
}

pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl Source for Channels {
    type Listener = Subscriber;

    async fn connect(&self) -> Result<Subscriber, StoreError> {
        let (client, mut connection) = self.connect.connect(&self.config).await.map_err(failed)?;
        let (told, messages) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(&mut connection).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = told.send(notification.payload().to_owned());
                }
            }
        });
        let driver = driver.abort_handle();
        let mut subscriber = Subscriber { client, messages, names: HashSet::new(), driver };
        // A pooler of transactions listens, and tells nobody: then the cells had better poll.
        let probe = format!("dogpile_{:016x}", draw::number());
        let (listen, unlisten) = (format!("LISTEN {probe}; NOTIFY {probe}"), format!("UNLISTEN {probe}"));
        subscriber.client.batch_execute(&listen).await.map_err(failed)?;
        subscriber.next().await?;
        subscriber.client.batch_execute(&unlisten).await.map_err(failed)?;
        Ok(subscriber)
    }
}

impl Listener for Subscriber {
    async fn listen(&mut self, name: &str) -> Result<(), StoreError> {
        self.names.insert(name.to_owned());
        self.client.batch_execute(&format!("LISTEN {}", quoted(&channel(name)))).await.map_err(failed)
    }

    async fn unlisten(&mut self, name: &str) -> Result<(), StoreError> {
        self.names.remove(name);
        let channel = channel(name);
        if self.names.iter().any(|other| self::channel(other) == channel) {
            return Ok(());
        }
        self.client.batch_execute(&format!("UNLISTEN {}", quoted(&channel))).await.map_err(failed)
    }

    async fn next(&mut self) -> Result<String, StoreError> {
        self.messages.recv().await.ok_or_else(|| StoreError::new("the connection has ended"))
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.client.batch_execute("SELECT 1").await.map_err(failed)
    }
}
