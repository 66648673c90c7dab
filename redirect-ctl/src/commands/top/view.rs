//! How `top` is drawn: two columns where the terminal is wide, one below the other where it is not.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table},
};

use super::{
    super::output::{duration, word},
    model::{Model, Sample},
};
use crate::health::HealthState;

/// From this width on there are two columns.
const WIDE: u16 = 110;

const HELP_LINES: u16 = 6;
const HELP: [&str; HELP_LINES as usize] = [
    "p, space   hold, and go on",
    "s          sort traffic by packets, bytes or name",
    "h, ?       this",
    "q, Esc     leave",
    "",
    "Rates are what came between two looks; before the second one, what came since the start.",
];

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [title, body, keys] =
        Layout::vertical([Constraint::Length(3), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let Some(sample) = model.latest() else { return };
    header(frame, title, model, sample);
    let panels: [Rect; 4] = if body.width >= WIDE {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(body);
        let [traffic, subscribers] = Layout::vertical([Constraint::Fill(3), Constraint::Fill(2)]).areas(left);
        let [relays, gateways] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(right);
        [traffic, subscribers, relays, gateways]
    } else {
        let parts = [Constraint::Fill(3), Constraint::Fill(2), Constraint::Fill(2), Constraint::Fill(2)];
        Layout::vertical(parts).areas(body)
    };
    traffic(frame, panels[0], model);
    subscribers(frame, panels[1], model, sample);
    relays(frame, panels[2], model, sample);
    gateways(frame, panels[3], model, sample);
    let hold = if model.is_paused() { "HELD  " } else { "" };
    let line = format!("{hold}q leave  p hold  s sort by {}  h help", model.sort.name());
    frame.render_widget(Paragraph::new(line).style(dim(model)), keys);
    if model.help {
        help(frame);
    }
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area().centered(Constraint::Length(94), Constraint::Length(HELP_LINES + 2));
    frame.render_widget(Clear, area);
    let lines: Vec<Line<'_>> = HELP.iter().map(|&line| Line::from(line)).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Keys")), area);
}

fn header(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let status = &sample.status;
    let relay = |name: &str| status.relay.get(name).copied().unwrap_or(0);
    let costs: Vec<_> = model
        .costs()
        .into_iter()
        .map(|cost| format!("{} {} ns x {}/s", cost.program, cost.ns_per_run, short(cost.runs_per_second)))
        .collect();
    let fault = model.error.as_ref().or(status.error.as_ref());
    let last = match fault {
        Some(fault) => Line::styled(fault.replace(char::is_control, " "), tone(model, Color::Red)),
        None => Line::from(costs.join("  ")),
    };
    let lines = vec![
        Line::from(vec![
            Span::styled(format!("redirectd {}", status.version), bold()),
            Span::from(format!(
                "  up {}  revision {} (kernel {})  {} subscribers",
                duration(status.uptime_s),
                status.revision,
                status.applied,
                status.subscribers
            )),
        ]),
        Line::from(format!(
            "flows {} of {}, {} half-open  sessions {}  messages {} accepted, {} rejected, {} deferred",
            short(status.flows.established),
            short(status.flows.capacity),
            short(status.flows.half_open),
            relay("sessions_active"),
            short(relay("messages_accepted")),
            short(relay("messages_rejected")),
            short(relay("messages_deferred"))
        )),
        last,
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn traffic(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (packets, bytes) = if model.has_rates() { ("PACKETS/S", "BYTES/S") } else { ("PACKETS", "BYTES") };
    let rows = model.traffic().into_iter().map(|((class, reason, verdict), count)| {
        let style = match verdict.as_str() {
            "drop" | "reject" => tone(model, Color::Red),
            "redirect" => tone(model, Color::Green),
            _ => Style::new(),
        };
        let class = class.unwrap_or_else(|| "-".to_owned());
        Row::new([class, reason, verdict, short(count.packets), short(count.bytes)]).style(style)
    });
    let widths =
        [Constraint::Fill(2), Constraint::Fill(3), Constraint::Length(8), Constraint::Length(9), Constraint::Length(9)];
    let titles = ["CLASS", "REASON", "VERDICT", packets, bytes];
    frame.render_widget(
        Table::new(rows, widths).header(titles_of(titles)).block(Block::bordered().title("Traffic")),
        area,
    );
}

fn subscribers(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let rows = model.busiest().into_iter().map(|busy| {
        let class = busy.class.unwrap_or_else(|| "-".to_owned());
        Row::new([busy.client.to_string(), class, busy.open.to_string(), busy.fresh.to_string()])
    });
    let (shown, total) = (sample.flows.items.len() as u64, sample.flows.total);
    let title = if total > shown {
        format!("Busiest subscribers, by {shown} of {total} flows")
    } else {
        "Busiest subscribers".to_owned()
    };
    let widths = [Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(6), Constraint::Length(6)];
    let table = Table::new(rows, widths).header(titles_of(["CLIENT", "CLASS", "OPEN", "NEW"]));
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

fn relays(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let rows = sample.relays.iter().map(|relay| {
        let endpoints = [&relay.health.ipv4, &relay.health.ipv6];
        let states: Vec<_> = endpoints.into_iter().flatten().map(|endpoint| endpoint.state).collect();
        let (health, style) = match states.as_slice() {
            [] => ("-", Style::new()),
            states if states.contains(&HealthState::Down) => ("down", tone(model, Color::Red)),
            states if states.contains(&HealthState::Unknown) => ("unknown", tone(model, Color::Yellow)),
            _ => ("up", tone(model, Color::Green)),
        };
        let cells = [relay.name.to_string(), relay.status.to_string(), health.to_owned(), short(relay.flows)];
        Row::new(cells).style(style)
    });
    let widths = [Constraint::Fill(1), Constraint::Length(8), Constraint::Length(7), Constraint::Length(6)];
    let table = Table::new(rows, widths).header(titles_of(["RELAY", "STATUS", "HEALTH", "FLOWS"]));
    frame.render_widget(table.block(Block::bordered().title("Relays")), area);
}

fn gateways(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let rows = sample.gateways.iter().map(|gateway| {
        let state = gateway.state.as_ref();
        let (health, style) = match state.map(|state| state.up) {
            None => ("-", Style::new()),
            Some(true) => ("up", tone(model, Color::Green)),
            Some(false) => ("down", tone(model, Color::Red)),
        };
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let (connections, outstanding) =
            (number(state.map(|state| state.connections)), number(state.map(|state| state.outstanding)));
        let spec = &gateway.gateway;
        Row::new([spec.name.to_string(), word(&spec.status), health.to_owned(), connections, outstanding]).style(style)
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(6),
    ];
    let table = Table::new(rows, widths).header(titles_of(["GATEWAY", "STATUS", "HEALTH", "CONNS", "MAIL"]));
    frame.render_widget(table.block(Block::bordered().title("Gateways")), area);
}

fn titles_of<const N: usize>(titles: [&'static str; N]) -> Row<'static> {
    Row::new(titles.map(Cell::from)).style(bold())
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim(model: &Model) -> Style {
    if model.colours { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
}

fn tone(model: &Model, colour: Color) -> Style {
    if model.colours { Style::new().fg(colour) } else { Style::new() }
}

/// Short: 9999, 10k, 1234k, 12M.
fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{}k", number / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::{Value, json};

    use super::{
        super::model::{Key, Model, Sample},
        draw, short,
    };
    use crate::dataplane::kernel::inspect;

    fn sample(at: Instant, uptime_s: u64, packets: u64) -> Sample {
        let status = json!({
            "version": "0.1.0", "uptime_s": uptime_s, "revision": 9, "applied": 9, "configuration": {"revision": 9, "pending": null}, "error": null,
            "dataplane": {"layout": 2, "flows_max": 65_536, "subscribers_max": 65_536, "full_syncs": 1},
            "interfaces": [],
            "flows": {"half_open": 3, "established": 12_345, "capacity": 131_072, "collected": 0},
            "foreign_sources": {"known": 0, "capacity": 512, "learned": 0, "expired": 0, "unanswered": 0, "refused": {}},
            "subscribers": 6, "events": {"read": 0, "lost": 0, "dropped": 0}, "memory": [],
            "relay": {"sessions_active": 4, "messages_accepted": 20}, "reasons": {},
        });
        let reason = |class: &str, reason: &str, verdict: &str, packets: u64, bytes: u64| json!({"class": class, "reason": reason, "verdict": verdict, "packets": packets, "bytes": bytes});
        let counters = json!({
            "reasons": [
                reason("guests", "flow_established", "redirect", packets, packets * 1_000),
                reason("bad", "class_block", "drop", packets * 2, packets * 120),
            ],
            "interfaces": [],
        });
        let health = json!({"state": "down", "since": "2026-11-22T12:00:00Z", "error": "refused"});
        let relays = json!([{
            "name": "postfix", "ipv4": "10.9.0.25:25", "ipv6": null, "delivery": "auto", "status": "enabled", "source": "api",
            "health": {"ipv4": health, "ipv6": null}, "flows": 12_345,
        }]);
        let gateways = json!([{"name": "mx", "address": "192.0.2.1", "state": null}]);
        let flow = |client: &str, age_s: u32| {
            json!({
                "client": client, "server": "203.0.113.9:25", "relay": null, "mapped_port": 40_000, "class": "guests",
                "state": "established", "delivery": "steer", "age_s": age_s, "idle_s": 0,
            })
        };
        let flows =
            [flow("10.20.0.9:1", 100), flow("10.20.0.7:1", 0), flow("10.20.0.7:2", 100), flow("[fd00::1]:1", 100)];
        Sample {
            at,
            status: of(status),
            stats: of(counters),
            relays: of(relays),
            gateways: of(gateways),
            flows: of(json!({"items": flows, "total": 5_000})),
            programs: vec![inspect::Program {
                id: 7,
                name: "redirect_in".to_owned(),
                tag: String::new(),
                verified_instructions: None,
                jited_bytes: 0,
                runs: packets,
                run_ns: packets * 200,
                maps: Vec::new(),
            }],
        }
    }

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// Two samples, two seconds apart.
    fn model() -> Model {
        let start = Instant::now();
        let mut model = Model::new(false);
        model.update(sample(start, 100, 1_000));
        model.update(sample(start + Duration::from_secs(2), 102, 31_000));
        model
    }

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end().to_owned()).collect()
    }

    #[track_caller]
    fn shows(screen: &[String], parts: &[&str]) {
        for part in parts {
            assert!(screen.iter().any(|line| line.contains(part)), "{part:?} is missing in\n{}", screen.join("\n"));
        }
    }

    #[test]
    fn a_wide_terminal_shows_all_panels() {
        let screen = screen(&model(), 120, 24);
        shows(
            &screen,
            &[
                "redirectd 0.1.0  up 1m42s  revision 9 (kernel 9)  6 subscribers",
                "flows 12k of 131k, 3 half-open  sessions 4  messages 20 accepted, 0 rejected, 0 deferred",
                "redirect_in 200 ns x 15k/s",
                "PACKETS/S",
                "Busiest subscribers, by 4 of 5000 flows",
                "postfix",
                "mx",
                "q leave  p hold  s sort by packets  h help",
            ],
        );
        // Two columns: what is blocked comes first, as it is twice as much.
        let row = |text: &str| screen.iter().position(|line| line.contains(text)).unwrap();
        assert!(row("class_block") < row("flow_established"));
        assert!(screen[row("class_block")].contains("30k"), "{}", screen[row("class_block")]);
        assert!(screen[row("10.20.0.7")].contains("2      1") && row("10.20.0.7") < row("10.20.0.9"));
        assert!(screen[row("postfix")].contains("down"));
    }

    #[test]
    fn a_narrow_terminal_shows_them_one_below_the_other() {
        let screen = screen(&model(), 60, 40);
        let row = |text: &str| screen.iter().position(|line| line.contains(text)).unwrap();
        assert!(row("Traffic") < row("Busiest") && row("Busiest") < row("Relays") && row("Relays") < row("Gateways"));
        shows(&screen, &["class_block", "10.20.0.7", "postfix", "mx"]);
    }

    #[test]
    fn no_terminal_is_too_small() {
        for (width, height) in [(1, 1), (10, 3), (20, 5), (200, 2), (3, 100)] {
            let mut model = model();
            screen(&model, width, height);
            model.press(Key::Help);
            screen(&model, width, height);
        }
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let mut model = model();
        assert!(model.press(Key::Sort));
        shows(&screen(&model, 120, 24), &["s sort by bytes"]);
        let screen_by_bytes = screen(&model, 120, 24);
        let row = |text: &str| screen_by_bytes.iter().position(|line| line.contains(text)).unwrap();
        assert!(row("flow_established") < row("class_block"));
        assert!(model.press(Key::Pause) && model.is_paused());
        shows(&screen(&model, 120, 24), &["HELD"]);
        assert!(model.press(Key::Help));
        shows(&screen(&model, 120, 24), &["p, space   hold, and go on"]);
        assert!(model.press(Key::Quit), "the first leaves the help");
        assert!(!model.press(Key::Quit));
    }

    #[test]
    fn an_error_is_shown_beside_what_was_known() {
        let mut model = model();
        model.fail("cannot reach redirectd".to_owned());
        shows(&screen(&model, 120, 24), &["cannot reach redirectd", "class_block"]);
    }

    #[test]
    fn rates_begin_anew_with_the_daemon() {
        let mut model = model();
        model.update(sample(Instant::now(), 1, 5));
        assert!(!model.has_rates());
        assert!(model.costs().is_empty());
        shows(&screen(&model, 120, 24), &["PACKETS "]);
    }

    #[test]
    fn there_are_no_colours_where_none_are_wanted() {
        let styles = |model: &Model| {
            let mut terminal = Terminal::new(TestBackend::new(120, 24)).unwrap();
            terminal.draw(|frame| draw(frame, model)).unwrap();
            let cells = terminal.backend().buffer().content().iter();
            cells.filter(|cell| cell.fg != ratatui::style::Color::Reset).count()
        };
        let mut model = model();
        assert_eq!(styles(&model), 0);
        model.colours = true;
        assert!(styles(&model) > 0);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10k"),
            (9_999_999, "9999k"),
            (10_000_000, "10M"),
            (u64::MAX, "18446744073G"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
