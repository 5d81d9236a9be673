//! The rules of the protocol, each as a switch. All are on in the model that has to hold; the
//! mutation test turns off one at a time and demands that the search finds what it prevents.

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What the modelled processes obey.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Rules {
            $($(#[doc = $doc])+ pub $name: bool,)+
        }

        impl Rules {
            pub const ALL: Rules = Rules { $($name: true,)+ };
            /// Names in declaration order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];

            /// All rules but the named one.
            pub fn without(name: &str) -> Rules {
                let mut rules = Rules::ALL;
                match name {
                    $(stringify!($name) => rules.$name = false,)+
                    _ => panic!("no rule is called {name}"),
                }
                rules
            }
        }
    };
}

rules! {
    /// R12: a trim or zero reads back zero at the source.
    zero_reads_zero,
    /// A flush is answered when the source has made durable what came before it.
    flush_reaches_source,
    /// R7: after a failed flush of a source no later one succeeds.
    failed_flush_is_sticky,
    /// R1: the payload of a write that never ended becomes what the source holds.
    intent_rewrite,
    /// R1: a zero or trim that never ended becomes failed, its blocks dirty.
    intent_zero_dirty,
    /// R2: a request goes un-journaled only if *every* block it touches is dirty.
    unjournaled_needs_all_dirty,
    /// R2: blocks are dirty before the un-journaled source write is submitted.
    dirty_before_source_write,
    /// R5: BREAK before the first un-journaled write of a whole group.
    break_before_unjournaled,
    /// A failed write: BREAK, then dirty, then the tombstone.
    dirty_before_tombstone,
    /// After a kill, `whole` is what the last control record in the ring says.
    whole_from_records,
    /// A full ring dirties blocks; it never makes a guest wait.
    overflow_to_map,
    /// A slot is given up for the control records when data has filled the rest.
    control_slots_reserved,
    /// R3: a claim is served when nothing is in flight on its volume.
    claim_waits_for_inflight,
    /// R3: `claimed` is set before `dirty` is cleared.
    claimed_before_clean,
    /// R3: the count of claimed blocks rises before the count of dirty ones falls.
    claim_counts_never_both_zero,
    /// R3: only the durable ack clears `claimed`.
    ack_clears_claimed,
    /// R3: a block that is claimed and dirty is not claimed a second time.
    no_second_claim,
    /// R3: a new session turns claims back to dirty.
    claims_revert_on_new_session,
    /// Claim ids rise over a restart of the proxy.
    claim_ids_persist,
    /// R3: all records up to P are cut before the claimed blocks are read.
    cut_through_p_before_read,
    /// R3: no record is cut while claimed blocks are read.
    no_cut_while_reading,
    /// R13: the shipper reads what the proxy has written, not what a descriptor of its own sees.
    reads_through_proxy,
    /// A change past the journal joins its cells to those that a dirty block has.
    parts_join,
    /// A block that is dirty as a whole stays so, whatever part of it changes.
    whole_stays_whole,
    /// What else makes a block dirty takes its parts away.
    other_dirt_is_whole,
    /// A claim that reverts joins its parts to those of what changed since.
    revert_joins_parts,
    /// R4: HEAL only when nothing is dirty or claimed.
    heal_needs_empty_map,
    /// R5: HEAL and an overflow exclude each other by the append lock.
    heal_under_lock,
    /// R5: HEAL only while room for the next BREAK remains.
    heal_leaves_room,
    /// The shipper drains only records whose outcome, and that of all before, is final.
    drain_to_watermark,
    /// R11: a slot is freed only by the target's durable ack.
    slots_freed_by_ack,
    /// Slots are freed under the append lock: a BREAK or HEAL stays until `whole` is stored.
    slots_freed_under_lock,
    /// R11: what counts as spilled is written.
    spilled_follows_span,
    /// R11: only final records are spilled.
    spill_final_only,
    /// R11: a segment is used again when the target has its records.
    segment_kept_until_acked,
    /// R11: a start looks whether the spill has what the ring relies on.
    spill_holes_found,
    /// R11: a damaged segment's blocks become dirty.
    damage_dirties_segment,
    /// R11: the stream breaks where a damaged record was.
    damage_breaks,
    /// R11: so does the ring, whatever the segment touched: a HEAL has to follow.
    damage_breaks_ring,
    /// R11: with a HEAL or RESYNC behind it everything is compared instead.
    damage_behind_heal_compares_all,
    /// R7: what a damage dirties is hot.
    damage_heats,
    /// Records of the spill are checked before they are shipped.
    spill_checksums,
    /// R14: what counts as durable in the spill is synced.
    spill_durable_is_synced,
    /// R14: after a failed sync of the spill no later one covers what that one lost.
    failed_spill_sync_loses,
    /// R14: not after a kill either.
    spill_loss_outlives_kill,
    /// R14: a flush of the source is the spill's only for what was written before it began.
    joint_flush_covers_what_was_written,
    /// R14: durability "flush": a flush is answered when the journal is durable, too.
    flush_waits_for_journal,
    /// R14: durability "write": so is a write.
    write_waits_for_journal,
    /// R14: a slow or full spill holds no guest beyond the bound.
    journal_wait_bounded,
    /// R14: unless the policy is strict.
    strict_waits_without_bound,
    /// R6: of a lost ring the spill's records are shipped only to a target that they bring to
    /// the activity map's base.
    history_reaches_base,
    /// What the rest of a history that ends early touched is compared.
    history_end_dirties_rest,
    /// No HEAL before the history is over.
    history_before_heal,
    /// A HEAL in the history is shipped only to a target that has its claims.
    history_heal_checks_claims,
    /// R7: what the history touches is hot in the next incarnation.
    history_heats,
    /// R7: the base is not behind a history that may be given up.
    history_lowers_base,
    /// The history counts until a target has the first record of the next incarnation.
    history_kept_until_passed,
    /// Unacknowledged bytes are bounded.
    window_bounded,
    /// Resume only a receiver that stands at or behind nothing the ring has given up.
    resume_checks_position,
    /// The same for claims.
    resume_checks_claims,
    /// A newer incarnation continues only a receiver at or beyond its base.
    resume_checks_base,
    /// "Everything dirty" starts the stream at a fresh RESYNC record.
    fresh_resync,
    /// R6: a ring that comes through a boot on some disk is not what was in memory.
    ring_of_this_boot,
    /// R9: recovery begins when the last I/O of a killed owner has ended.
    owner_fence,
    /// R10: a source that was changed while no proxy ran is compared.
    attach_checks_source,
    /// R10: an orderly stop flushes the sources before it says what the target lacks.
    stop_flushes_source,
    /// R6: an incarnation begins with a RESYNC record, which the receiver takes as a BREAK.
    resync_begins_incarnation,
    /// R6, R8: after the loss of a ring what was hot is suspect.
    ring_loss_suspects_hot,
    /// Recovery of a map that is damaged, or of another incarnation: everything is suspect.
    unsound_map_suspects_all,
    /// The operator heeds the alarm of a map that a slow state disk has made invalid.
    invalid_map_suspects_all,
    /// R7: an extent is hot, durably, before its first write.
    hot_before_first_write,
    /// R7: that a write went past a slow map is known to whoever finds the ring.
    invalid_map_outlives_kill,
    /// R7: a guest waits for the state disk only so long.
    activation_wait_bounded,
    /// R7: what a start finds or makes dirty is hot: writes to dirty blocks heat nothing.
    start_heats_dirty,
    /// R7: "everything dirty" is everything hot.
    resync_heats_all,
    /// What is heated past the map's thread counts as touched: a cooler may be half done.
    heating_touches,
    /// A map that a killed proxy left is synced before its bits are relied on.
    resumed_map_synced,
    /// R7: cold only after a source sync that began behind all that.
    cold_after_source_sync,
    /// R7: cold only when the target, or the spill durably, has the records.
    cold_needs_ack,
    /// R7: of an incarnation nothing goes cold before a target has reached it.
    cold_needs_first_ack,
    /// R7: what is spilled and not synced makes nothing cold.
    cold_needs_synced_spill,
    /// R7: nothing goes cold behind a failed source sync.
    cold_needs_good_sync,
    /// R7: cold only when it was not touched.
    cold_needs_untouched,
    /// R7: cold only when nothing of it is dirty or claimed.
    cold_needs_clean_map,
    /// The cooler looks at the touches once more behind the clearing.
    cold_looks_at_touches_last,
    /// R7: the base is durable before bits that rely on it are cleared.
    base_before_cold,
    /// R8: compared in the order of the stream, behind all records up to P.
    compare_in_stream,
    /// R8: a compare claim ends with its differing blocks, not with the question.
    compare_ends_when_settled,
    /// Differing blocks are read again: records behind the question are in the stream.
    differing_read_again,
    /// A verdict names its batch: one of an earlier session answers nothing.
    verdict_names_batch,
    /// An orderly stop saves claimed blocks, too.
    saved_map_has_claimed,
    /// An orderly stop saves the blocks of undrained records.
    saved_map_has_undrained,
    /// The saved map is deleted, durably, before the first write.
    saved_map_deleted,
    /// A claim ends with its last part only.
    claim_ends_with_last_part,
    /// The proxy serves nothing from a connection older than the one that attached last.
    link_fence,
    /// The receiver takes nothing from a connection older than the session it knows.
    session_fence,
    /// The receiver takes only the next number with the matching hash.
    number_chain,
    /// Acknowledged only when staging is durable.
    ack_after_staging_sync,
    /// Applied only from durable staging, from which it can be redone.
    redo,
    /// Staging is given up only when the targets are flushed.
    applied_after_flush,
    /// R5: pre-images while the group is broken.
    undo,
    /// Pre-images belong to one point.
    undo_tagged,
    /// R5: a mark ends its batch.
    mark_ends_batch,
    /// R5: no mark while the group is broken.
    mark_needs_whole,
    /// Held requests wait.
    hold_gates_writes,
    /// Held only when requests in flight have ended.
    hold_waits_for_inflight,
    /// The proxy seals only the attempt that it holds.
    seal_needs_hold,
    /// A seal is durable before it is answered.
    seal_is_durable,
    /// Only the receiver's durable abort ends a seal.
    seal_ends_by_decision,
    /// The receiver promotes only at exactly the sealed point.
    promote_checks_position,
    /// The receiver decides an attempt once.
    decides_once,
    /// The receiver's decision is durable before it is answered.
    decision_is_durable,
}
