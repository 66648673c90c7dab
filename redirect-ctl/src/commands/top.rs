//! `top`: what happens at the moment, until somebody leaves. [`model`] thinks, [`view`] draws, and here is the terminal.
//!
//! The kernel counts what programs cost only while somebody wants to know (`BPF_ENABLE_STATS`, which is for root), and so only while this is open.

mod model;
mod view;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::model::{Key, Model, Sample};
use super::{Context, Error};
use crate::{
    api::{
        client,
        types::{FlowListQuery, Gateway, Page, Relay, paths},
    },
    cli,
    dataplane::kernel::inspect,
    limits,
};

/// How long the terminal is waited for at a time; as long as that it may take until the thread that reads it ends.
const KEY_WAIT: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &mut Context<'_>, args: &cli::Top) -> Result<(), Error> {
    if !context.is_terminal || !context.layout.is_for_people() {
        let remedy = "ask for status, stats, relay list and flow list with -o json instead";
        return Err(Error::Usage(format!("top draws on a terminal, and this is none; {remedy}")));
    }
    // Before the screen is taken, so that whoever cannot reach the daemon is told so.
    let mut model = Model::new(context.layout.colours);
    model.update(sample(context).await?);
    // Dropped at the end, and with it the counting.
    let _counting = enable_stats(Stats::RunTime).ok();
    // A panic restores the terminal first.
    let mut terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
    let (keys, stop, reader) = keys();
    let done = watch(context, &mut terminal, &mut model, keys, Duration::from_secs(args.interval)).await;
    stop.store(true, Ordering::Relaxed);
    ratatui::try_restore()?;
    // It looks at the flag soon; what it has read is nobody's any more.
    drop(reader.join());
    done
}

async fn watch(
    context: &Context<'_>,
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    mut keys: mpsc::Receiver<Option<Key>>,
    pause: Duration,
) -> Result<(), Error> {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        tokio::select! {
            key = keys.recv() => match key {
                // The window has another size.
                Some(None) => {}
                Some(Some(key)) if model.press(key) => {}
                Some(Some(_)) | None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = ticks.tick() => if !model.is_paused() {
                match sample(context).await {
                    Ok(sample) => model.update(sample),
                    // It may come back.
                    Err(error) => model.fail(error.to_string()),
                }
            },
        }
    }
}

async fn sample(context: &Context<'_>) -> Result<Sample, client::Error> {
    let client = &context.client;
    let flows = FlowListQuery { limit: Some(limits::PAGE_ROWS_MAX), ..FlowListQuery::default() };
    let (relays, gateways): (Page<Relay>, Page<Gateway>) =
        (client.get(paths::RELAYS).await?, client.get(paths::GATEWAYS).await?);
    Ok(Sample {
        at: Instant::now(),
        status: client.status().await?,
        stats: client.stats().await?,
        relays: relays.items,
        gateways: gateways.items,
        flows: client.flows(&flows).await?,
        // For root only.
        programs: inspect::programs().unwrap_or_default(),
    })
}

/// What is typed, and `None` where the window changed; until the flag is set.
fn keys() -> (mpsc::Receiver<Option<Key>>, Arc<AtomicBool>, JoinHandle<()>) {
    let (sender, keys) = mpsc::channel(limits::TOP_KEYS_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let reader = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let key =
                match event::poll(KEY_WAIT).and_then(|ready| if ready { event::read().map(Some) } else { Ok(None) }) {
                    Ok(Some(Event::Key(key))) if key.kind != KeyEventKind::Release => Some(key_of(key)),
                    Ok(Some(Event::Resize(..))) => None,
                    Ok(_) => continue,
                    // There is no terminal any more, and nobody to press a key.
                    Err(_) => return,
                };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    (keys, stop, reader)
}

fn key_of(key: KeyEvent) -> Key {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('h' | '?') => Key::Help,
        _ => Key::Other,
    }
}
