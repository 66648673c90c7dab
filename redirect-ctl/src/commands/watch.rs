//! `--watch`: an answer again whenever it has become another one.

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Context, Error,
    output::{CLEAR, Layout},
    resource::Resource,
};
use crate::{
    api::types::ChangesQuery,
    cli::{Output, Watch},
    limits,
};

impl Context<'_> {
    /// Does what `print` does; if it is to be watched, again and again until the daemon stops: after changes of the configuration, and now and
    /// then for what nobody announces, such as health and flows. What is the same as before is not printed.
    pub(super) async fn watched(
        &mut self,
        Watch { watch }: Watch,
        mut print: impl AsyncFnMut(&mut Context<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !watch {
            return print(self).await;
        }
        let mut events = self.client.changes(&ChangesQuery { types: None }, None).await?;
        let mut shown = None;
        'watching: loop {
            let (mut text, mut notes) = (Vec::new(), Vec::new());
            print(&mut self.printing_to(&mut text, &mut notes)).await?;
            if shown.as_ref() != Some(&text) {
                self.show_again(&text, shown.is_none())?;
                self.stderr.write_all(&notes)?;
                shown = Some(text);
            }
            // An event that this gives up on in the middle is seen by the look that follows.
            match timeout(limits::WATCH_INTERVAL, events.next_event()).await {
                Err(_) => continue,
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => break 'watching,
                Ok(Err(error)) => return Err(error.into()),
            }
            // Changes come in swarms.
            let until = Instant::now() + limits::WATCH_DELAY;
            while let Ok(event) = timeout_at(until, events.next_event()).await {
                if event?.is_none() {
                    break 'watching;
                }
            }
        }
        self.note("redirectd stopped")
    }

    /// [`Context::list`], and again.
    pub(super) async fn watched_list<R: Resource>(&mut self, watch: Watch) -> Result<(), Error> {
        self.watched(watch, async |context: &mut Context<'_>| context.list::<R>().await).await
    }

    fn printing_to<'c>(&'c mut self, stdout: &'c mut Vec<u8>, stderr: &'c mut Vec<u8>) -> Context<'c> {
        Context {
            client: self.client.clone(),
            user: self.user.clone(),
            stdout,
            stderr,
            stdin: &mut *self.stdin,
            layout: match self.layout.form {
                // An answer a line, or nobody could tell where a list ends.
                Output::Ndjson => Layout { form: Output::Json, pretty: false, ..self.layout.clone() },
                _ => self.layout.clone(),
            },
            ..*self
        }
    }

    /// In the place of what was shown, where somebody looks; else behind it, so that a program can tell one answer from the next.
    fn show_again(&mut self, text: &[u8], first: bool) -> Result<(), Error> {
        let between: &[u8] = match self.layout.form {
            Output::Table | Output::Wide if self.is_terminal => CLEAR.as_bytes(),
            Output::Yaml => b"---\n",
            Output::Table | Output::Wide | Output::Name if !first => b"\n",
            Output::Table | Output::Wide | Output::Name | Output::Json | Output::Ndjson => b"",
        };
        self.stdout.write_all(between)?;
        self.stdout.write_all(text)?;
        Ok(self.stdout.flush()?)
    }
}
