//! The catalogue of attacks and bad input, by its numbers: each has tests of its own, or is no matter of this crate. A row
//! that nobody answers for fails here, and so does a test that is gone.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Rows, and the tests that assert what must happen.
const ATTACKS: &[(u32, &[&str])] = &[
    (1, &["attacks_1_to_9_smuggled_ends_of_data", "attacks_1_to_9_leave_the_session_usable_and_no_half_message"]),
    (2, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (3, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (4, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (5, &["attacks_1_to_9_smuggled_ends_of_data", "smuggling_forms_do_not_end_a_body"]),
    (6, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (7, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (8, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (9, &["attacks_1_to_9_smuggled_ends_of_data", "smuggled_messages_never_reach_even_a_lenient_gateway"]),
    (10, &["attack_10_dot_stuffing", "agrees_with_the_reference", "messages_of_all_shapes"]),
    (11, &["attack_11_bare_line_ends_in_commands", "line_endings"]),
    (12, &["attack_12_smuggling_in_chunks", "attack_12_smuggling_forms_are_faults"]),
    (
        13,
        &[
            "attack_13_chunks_without_a_size",
            "attack_13_chunks_out_of_order_are_swallowed",
            "attack_13_other_commands_between_chunks",
            "attack_13_the_end_of_the_client_within_chunks",
        ],
    ),
    (14, &["attack_14_long_command_lines", "lengths"]),
    (15, &["attack_15_long_body_lines_pass_unchanged", "attack_15_long_lines_by_policy"]),
    (16, &["attack_16_loops", "attack_16_loops_in_chunks", "attack_16_headers_without_end"]),
    (
        17,
        &["attack_17_eight_bit_commands", "attack_17_utf8_without_the_parameter", "attack_17_octets_that_are_no_utf8"],
    ),
    (18, &["attack_18_other_protocols", "attack_18_other_protocols_get_their_answer"]),
    (19, &["attack_19_early_talkers", "attack_19_pipelined_before_the_reply_to_ehlo"]),
    (20, &["attack_20_text_before_354"]),
    (
        21,
        &[
            "attack_21_ten_thousand_commands_and_no_reading",
            "attack_21_a_client_that_never_reads",
            "attack_21_commands_without_a_message_are_limited",
            "attack_21_a_flood_of_small_chunks",
        ],
    ),
    (22, &["attack_22_commands_in_clear_behind_starttls"]),
    (23, &["attack_23_what_is_injected_behind_starttls_ends_the_connection"]),
    (24, &["attack_24_starttls_out_of_place"]),
    (25, &["attack_25_no_password_is_asked_for_in_clear", "a_password_never_goes_in_clear_unless_that_is_allowed"]),
    (26, &["attack_26_certificates_that_convince_nobody"]),
    (
        27,
        &[
            "attack_27_handshakes_that_stall_or_fail",
            "attack_27_handshakes_that_go_wrong",
            "attack_27_truncation_is_no_end",
            "attack_27_records_of_one_octet",
        ],
    ),
    (28, &["attack_28_slow_clients", "attack_28_bodies_that_become_slow", "attack_28_a_slow_chunk"]),
    (
        29,
        &[
            "attack_29_connections_of_one_subscriber",
            "attack_29_an_ipv6_subscriber_is_its_64",
            "attack_29_who_goes_on_is_locked_once",
        ],
    ),
    (30, &["attack_30_size", "attack_30_size_in_chunks", "attack_30_a_quota_of_octets"]),
    (
        31,
        &[
            "attack_31_too_many_recipients",
            "attack_31_a_dictionary_of_recipients",
            "attack_31_the_tar_pit_delays_answers_and_reads_nothing",
            "attack_31_errors_and_refused_recipients_are_slow",
        ],
    ),
    (32, &["attack_32_relay_forms", "attack_32_literals_by_policy", "relay_forms_are_refused"]),
    (33, &["attack_33_notifications"]),
    (34, &["attack_34_nothing_is_injected_through_xtext", "nothing_can_be_injected", "xclient_commands"]),
    (35, &["attack_35_parameters", "attack_35_parameters_are_offered_or_refused"]),
    (36, &["attack_36_auth", "attack_36_a_quota_of_failed_auths", "attack_36_responses"]),
    (37, &["attack_37_commands_of_relays"]),
    (
        38,
        &[
            "attack_38_half_closed_clients",
            "attack_38_clients_that_vanish_at_any_point",
            "attack_38_resets_in_every_state_leave_nothing_behind",
        ],
    ),
    (
        39,
        &[
            "attack_39_the_client_leaves_after_the_dot",
            "attack_39_a_client_that_leaves_after_the_dot_has_sent_its_message",
        ],
    ),
    (40, &["attack_40_the_gateway_is_lost_after_the_dot"]),
    (41, &["attack_41_a_gateway_that_hangs", "hangs"]),
    (
        42,
        &[
            "refused_or_lost_before_mail",
            "refused_or_lost_at_mail",
            "refused_or_lost_at_rcpt",
            "refused_or_lost_at_data",
        ],
    ),
    (43, &["what_is_not_a_reply", "refused_or_lost_after_the_dot", "talked_or_lost_within_the_body"]),
    (44, &["a_poisoned_connection_is_replaced", "a_stale_connection_is_replaced"]),
    (45, &["attack_45_a_gateway_that_does_not_read", "attack_45_a_gateway_that_stops_reading_holds_the_client_back"]),
    (
        46,
        &[
            "attack_46_where_only_this_host_may_go",
            "attack_46_passing_through_to_this_host",
            "what_only_this_host_can_reach",
        ],
    ),
    (48, &["a_gateway_that_flaps_waits_longer_each_time_up_to_a_bound"]),
    (49, &["round_robin_passes_over_the_suspended_and_the_other_family", "attack_49_no_descriptors_left"]),
    (50, &["shutdown_waits_for_messages_and_not_for_idle_clients", "the_end_of_the_drain_completes_nothing"]),
    (52, &["attack_52_routes_change_between_messages_and_not_within"]),
    (53, &["a_formula_is_no_formula", "faults_have_their_lines"]),
    (54, &["a_password_is_never_shown", "our_own_listener_is_refused_whatever_is_allowed"]),
    (56, &["attack_56_the_oldest_place_is_lost", "attack_56_a_lost_place_ends_the_session_at_once"]),
    (
        57,
        &[
            "attack_57_labels_do_not_explode",
            "attack_57_nothing_is_injected_into_what_is_shown",
            "attack_57_what_a_client_says_ends_no_line",
        ],
    ),
];

/// Rows that this crate cannot meet, and who does.
const ELSEWHERE: &[(u32, &str)] = &[
    (47, "no MX is looked up: gateways are hosts, by address or A and AAAA; loops to our own listeners are row 46"),
    (51, "the data plane resets a live flow when its class changes; the relay sees a reset, row 38"),
    (55, "there is no scanner"),
];

/// The names of all tests below a folder.
fn tests_in(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            // What concerns the whole process has no harness, and a `main` that calls it.
            let harness = !path.ends_with("process.rs");
            let mut marked = !harness;
            for line in text.lines().map(str::trim) {
                if line == "#[test]" || line.starts_with("#[tokio::test") {
                    marked = true;
                } else if let Some((_, name)) = line.split_once("fn ").filter(|_| marked) {
                    names.insert(name.split(['(', '<']).next().unwrap().to_owned());
                    marked = !harness;
                }
            }
        }
    }
}

#[test]
fn every_row_has_its_tests() {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    tests_in(&crate_root.join("src"), &mut names);
    tests_in(&crate_root.join("tests"), &mut names);
    let mut rows: BTreeMap<u32, usize> = BTreeMap::new();
    for (row, tests) in ATTACKS {
        assert!(!tests.is_empty(), "row {row}");
        for test in *tests {
            assert!(names.contains(*test), "row {row}: there is no test {test}");
        }
        *rows.entry(*row).or_default() += 1;
    }
    for (row, reason) in ELSEWHERE {
        assert!(!reason.is_empty());
        *rows.entry(*row).or_default() += 1;
    }
    assert_eq!(rows, (1..=57).map(|row| (row, 1)).collect());
    // A test that names a row is in its list or among others of the row: no name lies.
    let numbers = names.iter().filter_map(|name| name.strip_prefix("attack_")?.split('_').next()?.parse::<u32>().ok());
    for number in numbers {
        assert!(rows.contains_key(&number) && !ELSEWHERE.iter().any(|(row, _)| *row == number), "row {number}");
    }
}
