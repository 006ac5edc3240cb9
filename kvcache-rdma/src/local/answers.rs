//! What follows from the server's answers.

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestOp};
use kvcache_wire::Status;
use kvcache_wire::extension::{ExistsReply, LeasedRoom, LeasedRooms, LeasedValue, LeasedValues, Statuses};

use super::copying::{Copying, Way};
use super::frames::Asked;
use super::session::LocalSession;
use super::spare_room::Spare;
use crate::tcp::{Fault, FaultReason, Work, refusal};

impl LocalSession {
    /// Does what an answer leads to.
    ///
    /// # Errors
    ///
    /// One that no cache server gives: the connection must end.
    pub(super) fn answered(
        &mut self,
        asked: Asked,
        status: Status,
        body: &[u8],
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        let moves = !matches!(asked, Asked::Exists(_) | Asked::Delete(_));
        match asked {
            _ if !status.is_ok() => {
                let mut asked = asked;
                for work in asked.works_mut() {
                    self.end(work, moves, refusal(status), ends);
                }
                if let Asked::Spare(..) = asked {
                    self.spare.came(std::iter::empty());
                }
            }
            Asked::Spare(count, bytes) => {
                // Without it the next values ask for room themselves.
                let rooms = LeasedRooms::decode(body, count as u32)?;
                let granted = || rooms.iter().filter(|room| room.status.is_ok());
                if let Some(room) =
                    granted().find(|room| self.pool.to_write(room.offset_bytes, bytes).is_none())
                {
                    return Err(outside(room.offset_bytes, bytes));
                }
                let spare = |LeasedRoom { lease, offset_bytes, .. }| Spare { lease, offset_bytes, bytes };
                self.spare.came(granted().map(spare));
            }
            Asked::Lease(works) => {
                let leased = match LeasedValues::decode(body, works.len() as u32) {
                    Ok(leased) => leased,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                let pinned = leased.iter().filter(|value| value.status.is_ok()).count();
                if pinned > 0 {
                    self.leased.insert(leased.lease, pinned);
                }
                let mut result = Ok(());
                for (value, work) in leased.iter().zip(works) {
                    result = result.and(self.leased_value(leased.lease, value, work, ends));
                }
                result?;
            }
            Asked::Reserve(works) => {
                let rooms = match LeasedRooms::decode(body, works.len() as u32) {
                    Ok(rooms) => rooms,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                let mut result = Ok(());
                for (room, work) in rooms.iter().zip(works) {
                    result = result.and(self.leased_room(room, work, ends));
                }
                result?;
            }
            Asked::Commit(works, _) | Asked::Delete(works) => {
                let statuses = match Statuses::decode(body, works.len() as u32) {
                    Ok(statuses) => statuses,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                for (status, mut work) in statuses.iter().zip(works) {
                    self.end(&mut work, moves, refusal(status), ends);
                }
            }
            Asked::Exists(works) => {
                let reply = match ExistsReply::decode(body, false, works.len() as u32) {
                    Ok(reply) => reply,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                for (index, mut work) in works.into_iter().enumerate() {
                    let present = reply.is_present(index);
                    self.end(
                        &mut work,
                        false,
                        if present { ItemResult::Done } else { ItemResult::Missing },
                        ends,
                    );
                }
            }
        }
        Ok(())
    }

    fn leased_value(
        &mut self,
        lease: u64,
        value: LeasedValue,
        mut work: Work,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        let corrupt = ItemResult::Failed(RemoteFailure::Corrupt);
        match value.status {
            Status::OK => {
                if work.memory.is_some() && value.value_bytes == work.bytes as u64 {
                    let (at, bytes) = (value.offset_bytes, work.bytes);
                    let Some(from) = self.pool.to_read(at, bytes) else {
                        return self.end_all(vec![work], outside(at, bytes), ends);
                    };
                    self.copies.push_back(Copying::new(work, lease, Way::Get(from, value.checksum)));
                } else {
                    self.copied_from(lease);
                    self.end(&mut work, true, corrupt, ends);
                }
            }
            // Another length than was put.
            Status::TOO_LARGE => self.end(&mut work, true, corrupt, ends),
            Status::RETRY if work.owner.is_some() => self.later.push_back((RequestOp::Get, work)),
            status => self.end(&mut work, true, refusal(status), ends),
        }
        Ok(())
    }

    fn leased_room(
        &mut self,
        room: LeasedRoom,
        mut work: Work,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        match room.status {
            Status::OK if work.memory.is_some() => {
                let (at, bytes) = (room.offset_bytes, work.bytes);
                let Some(to) = self.pool.to_write(at, bytes) else {
                    return self.end_all(vec![work], outside(at, bytes), ends);
                };
                self.copies.push_back(Copying::new(work, room.lease, Way::Put(to)));
            }
            // Nobody waits for it any more.
            Status::OK => {
                self.released.push(room.lease);
                self.bytes_in_flight -= work.bytes as u64;
            }
            Status::RETRY if work.owner.is_some() => self.later.push_back((RequestOp::Put, work)),
            status => self.end(&mut work, true, refusal(status), ends),
        }
        Ok(())
    }

    fn end(&mut self, work: &mut Work, moves: bool, result: ItemResult, ends: &mut Vec<ItemEnd>) {
        if moves {
            self.bytes_in_flight -= work.bytes as u64;
        }
        ends.extend(work.end(result));
    }

    /// Ends works whose answer cannot be read; the connection ends with them.
    fn end_all(&mut self, works: Vec<Work>, fault: Fault, ends: &mut Vec<ItemEnd>) -> Result<(), Fault> {
        for mut work in works {
            ends.extend(work.end(ItemResult::Failed(RemoteFailure::Unreachable)));
        }
        Err(fault)
    }
}

fn outside(offset: u64, bytes: usize) -> Fault {
    let text = format!("{bytes} bytes at {offset} are outside of the server's pool");
    Fault::new(FaultReason::Malformed, text)
}
