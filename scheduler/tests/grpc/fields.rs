//! No message between daemon and scheduler has room for a client's credential.
use darter_protocol::scheduler::DESCRIPTORS;
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;

/// Every field that holds text or bytes, and what stands in it. Whoever adds one says here why no credential, no URL and no
/// name that a client chose can stand in it.
const ALLOWED: &[(&str, &[&str])] = &[
    // Ids and hashes: checked for their form (`message.rs`).
    (
        "an id of a host",
        &[
            "AnnounceTaskRequest.host_id",
            "CandidateStatus.host_id",
            "DeleteTaskRequest.host_id",
            "ExplainTaskRequest.host_id",
            "Holder.host_id",
            "Host.id",
            "LeaveHostRequest.host_id",
            "LeaveTaskRequest.host_id",
            "Partner.host_id",
            "PartnerFailed.host_id",
            "PartnerServed.host_id",
            "PeerPacket.gone",
            "PieceResult.host_id",
            "RegisterPeerTaskRequest.host_id",
            "ReplicateTaskRequest.host_id",
            "ReportPeerResultRequest.host_id",
            "StatTaskResponse.lease_holder",
            "TaskStatus.lease_holder",
        ],
    ),
    (
        "an id of a task: 32 bytes",
        &[
            "AnnounceHostResponse.deleted",
            "AnnounceHostResponse.wanted",
            "DeleteTaskRequest.task_id",
            "ExplainTaskRequest.task_id",
            "HeldTask.task_id",
            "LeaveTaskRequest.task_ids",
            "ListTasksRequest.after",
            "ListTasksResponse.next",
            "PieceResult.task_id",
            "RegisterPeerTaskRequest.task_id",
            "ReplicateTaskRequest.task_id",
            "ReportPeerResultRequest.task_id",
            "StatTaskRequest.task_id",
            "TaskStatus.task_id",
        ],
    ),
    ("a hash: 32 bytes", &["Content.root", "PieceHash.hash"]),
    // Who does not know the URL learns nothing from them.
    ("hashes of the beginnings of a URL's path", &["RegisterPeerTaskRequest.url_prefixes"]),
    // Only what stands between `//` and the path, without a user and a password.
    ("the name of an origin's host", &["RegisterPeerTaskRequest.origin"]),
    (
        "a host's own description, from its configuration",
        &[
            "Holder.hostname",
            "Holder.ip",
            "Host.hostname",
            "Host.idc",
            "Host.ip",
            "Host.location",
            "Host.version",
            "Partner.ip",
        ],
    ),
    // A daemon keeps those that describe content, and no other: see the store's records.
    ("a header of an origin's answer", &["Header.name", "Header.value"]),
    (
        "a certificate of the cluster's CA that names a host",
        &["AnnounceHostRequest.expulsions", "AnnounceHostResponse.expulsions"],
    ),
    (
        "a word of the scheduler's own",
        &[
            "CandidateStatus.reason",
            "ExplainTaskResponse.standing",
            "HostStatus.reason",
            // A sentence of the block list, which the scheduler's operator wrote.
            "Refused.reason",
            "StatClusterResponse.version",
        ],
    ),
];

#[test]
fn no_message_has_a_field_in_which_a_credential_could_stand() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut found = BTreeSet::new();
    for message in set.file.iter().flat_map(|file| &file.message_type) {
        gather(message, &mut found);
    }
    let allowed: BTreeSet<String> =
        ALLOWED.iter().flat_map(|(_, fields)| fields.iter().map(|field| (*field).to_owned())).collect();
    assert_eq!(found, allowed, "left: fields that there are; right: those that were thought of");
}

fn gather(message: &DescriptorProto, found: &mut BTreeSet<String>) {
    for field in &message.field {
        if matches!(field.r#type(), Type::String | Type::Bytes | Type::Group) {
            found.insert(format!("{}.{}", message.name(), field.name()));
        }
    }
    // A map is a message within; there is none, and it would be found.
    message.nested_type.iter().for_each(|nested| gather(nested, found));
}
