//! What the operators' documentation says of the data plane.

use redirect_common::reason::Reason;

#[test]
fn every_reason_is_explained_to_operators_with_its_verdict() {
    let text = include_str!("../../docs/operate.md");
    let (_, table) = text.split_once("| reason | verdict | meaning |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let told: Vec<(&str, &str)> = rows
        .map(|row| {
            let mut cells = row.split('|').map(str::trim).skip(1);
            (cells.next().unwrap().trim_matches('`'), cells.next().unwrap())
        })
        .collect();
    for reason in Reason::ALL {
        let rows: Vec<_> =
            told.iter().filter(|(name, _)| *name == reason.name()).map(|(_, verdict)| *verdict).collect();
        assert_eq!(rows, [reason.verdict().name()], "{}", reason.name());
    }
    assert_eq!(told.len(), Reason::COUNT, "a row of no reason");
}
