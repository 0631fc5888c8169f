//! RFC 8482: a small answer to ANY.

use hickory_proto::{op::ResponseCode, rr::RecordType};

use crate::fixture::*;

#[test]
fn section_4_1_any_is_answered_with_one_rrset() {
    let reply = resolve(&ask(WEB, ANY));
    assert!(reply.metadata.authoritative);
    assert_eq!(aaaa(&reply), v6(3));
    let reply = resolve(&ask(ZONE, ANY));
    let types: Vec<_> = reply
        .answers
        .iter()
        .map(|record| record.record_type())
        .collect();
    assert_eq!(types, [RecordType::SOA]);
}

#[test]
fn section_4_1_any_of_a_name_without_records_is_nodata() {
    let reply = resolve(&ask("svc.cluster.local", ANY));
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
}

#[test]
fn section_4_1_any_of_no_name_is_nxdomain() {
    assert_eq!(
        resolve(&ask(ABSENT, ANY)).metadata.response_code,
        ResponseCode::NXDomain
    );
}
