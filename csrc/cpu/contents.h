// What is legal in the numbers that an op's tensors hold: blocks, tokens, lanes, head records. Read
// before any kernel starts, so that a wrong one ends in an error that names it, with nothing
// written. On a GPU, whose memory the host does not read, kernels look themselves: cuda/found.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>

#include "checks.h"

namespace fastgen::cpu {

// Where a record is: heads[lane, layer, head], or heads[layer, head] of one request.
struct Place {
  int lane;  // -1: none
  int layer;
  int head;
  const char* tensor = "heads";
};
std::ostream& operator<<(std::ostream& out, const Place& place);

class Contents {
 public:
  Contents(const char* op, const PagePool& pool) : op_(op), pool_(pool) {}

  // The first `used` blocks of a row are among `num_blocks`.
  void blocks(const char* name, const BlockRow& row, int64_t used, int num_blocks) const;

  // The record is sound.
  void record(const HeadRecord& head, const Place& place) const;

  // A sound head's first `num_slots` slots lie on pages that the row has. Returns how many pages of
  // the stream that takes.
  int64_t slots(const HeadRecord& head, const Place& place, int32_t num_slots, const char* name,
                const BlockRow& row) const;

  // The blocks of a stream's first pages are blocks of the pool.
  void stream(const char* name, const BlockRow& row, int64_t num_pages) const;

  // Heads [first, first + count) of one request, among records [L, H], are sound, and the first
  // `num_slots` slots of each are there.
  void heads(const HeadRecord* records, int first, int count, int32_t num_slots,
             const BlockRow& row) const;

  // What the heads of the layer need for the queries and the tokens before them is.
  void queries(const PromptQueries& a) const {
    const int first = a.layer * a.pool.num_heads, end = a.first_position + a.num_queries;
    heads(a.heads, first, a.pool.num_heads, end, a.block_row);
  }

  // Every request's token and lane exist, no lane is another's too, its records are sound, and the
  // first slots_of(record, place, request) slots of its heads are there.
  template <typename SlotsOf>
  void step(const StepRequests& step, const SlotsOf& slots_of) const {
    requests(step);
    for (int request = 0; request < step.num_requests; ++request) {
      const BlockRow row = row_of(step, request);
      int64_t num_pages = 0;
      for (int h = 0; h < pool_.num_heads; ++h) {
        const HeadRecord& head = record_of(step, pool_, request, h);
        const Place place = {step.lanes[request], step.layer, h};
        record(head, place);
        const int32_t num_slots = slots_of(head, place, request);
        num_pages = std::max(num_pages, slots(head, place, num_slots, "block_rows", row));
      }
      stream("block_rows", row, num_pages);
    }
  }

 private:
  void requests(const StepRequests& step) const;

  const char* op_;
  const PagePool& pool_;
};

}  // namespace fastgen::cpu
