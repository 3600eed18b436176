#include "cpu/contents.h"

#include <string>
#include <vector>

namespace fastgen::cpu {
namespace {

std::string fields(const HeadRecord& head) {
  std::string text;
  for (int i = 0; i < kHeadFields; ++i) {
    text += (i ? ", " : "") + std::to_string(reinterpret_cast<const int32_t*>(&head)[i]);
  }
  return "[" + text + "]";
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Place& place) {
  out << place.tensor << "[";
  if (place.lane >= 0) out << place.lane << ", ";
  return out << place.layer << ", " << place.head << "]";
}

void Contents::blocks(const char* name, const BlockRow& row, int64_t used, int num_blocks) const {
  bool all = true;
  for (int64_t i = 0; i < used; ++i) all &= is_block(row.blocks[i], num_blocks);
  if (all) return;
  int64_t i = 0;
  while (is_block(row.blocks[i], num_blocks)) ++i;
  refuse(op_, ": ", name, " must have blocks in [0, ", num_blocks, "), got ", row.blocks[i],
         " as number ", i);
}

void Contents::record(const HeadRecord& head, const Place& place) const {
  if (is_sound(head)) return;
  refuse(op_, ": ", place,
         " is no head record: a field is negative or too large, or a period is 0, got ",
         fields(head));
}

int64_t Contents::slots(const HeadRecord& head, const Place& place, int32_t num_slots,
                        const char* name, const BlockRow& row) const {
  const int per_block = pages_per_block(pool_);
  const int64_t needed = stream_needed(head, num_slots, pool_.page_slots, per_block);
  require(needed <= stream_pages(pool_, row), op_, ": ", name, " must have ",
          (needed + per_block - 1) / per_block, " blocks for the ", num_slots, " slots of ", place,
          ", got ", row.num_blocks);
  return needed;
}

void Contents::stream(const char* name, const BlockRow& row, int64_t num_pages) const {
  const int per_block = pages_per_block(pool_);
  blocks(name, row, (num_pages + per_block - 1) / per_block, pool_.num_blocks);
}

void Contents::heads(const HeadRecord* records, int first, int count, int32_t num_slots,
                     const BlockRow& row) const {
  int64_t num_pages = 0;
  for (int i = first; i < first + count; ++i) {
    const Place place = {-1, i / pool_.num_heads, i % pool_.num_heads};
    record(records[i], place);
    num_pages = std::max(num_pages, slots(records[i], place, num_slots, "block_row", row));
  }
  stream("block_row", row, num_pages);
}

void Contents::requests(const StepRequests& step) const {
  std::vector<bool> taken(step.num_lanes);
  for (int request = 0; request < step.num_requests; ++request) {
    const int64_t token = step.token_index[request];
    require(0 <= token && token < step.num_tokens, op_, ": token_index must be in [0, ",
            step.num_tokens, "), got ", token);
    const int32_t lane = step.lanes[request];
    require(0 <= lane && lane < step.num_lanes, op_, ": lanes must be in [0, ", step.num_lanes,
            "), got ", lane);
    require(!taken[lane], op_, ": lanes must differ, got ", lane, " twice");
    taken[lane] = true;
  }
}

}  // namespace fastgen::cpu
