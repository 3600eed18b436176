#include <memory>
#include <vector>

#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {
namespace {

// Long enough that merging costs nothing, short enough that no core waits for one long head.
constexpr int kPartSlots = 1024;

// The parts of one (request, head): parts[first, first + count).
struct Job {
  int64_t first;
  int count;
};

}  // namespace

void decode_attention(DecodeArgs a) {
  const auto slots_in_use = [](const HeadRecord& head, const Place& place, int) {
    require(head.length > 0, "decode_attention: heads must have a LENGTH of at least 1, ", place,
            " has ", head.length);
    return head.length;
  };
  Contents("decode_attention", a.pool).step(a.step, slots_in_use);
  a.part_pages = std::max(1, kPartSlots / a.pool.page_slots);

  // Only a head of several parts that values tokens needs its scores after its parts are done.
  const int part_slots = a.part_pages * a.pool.page_slots;
  const int64_t scores_size = static_cast<int64_t>(a.group_size) * part_slots;
  const int64_t state_size =
      whole_lines(static_cast<int64_t>(a.group_size) * (a.pool.head_size + 2));
  std::vector<DecodePart> parts;
  std::vector<int64_t> job_of_part;
  std::vector<Job> jobs;
  int64_t kept_scores = 0;
  for (int request = 0; request < a.step.num_requests; ++request) {
    for (int head = 0; head < a.pool.num_heads; ++head) {
      const HeadRecord& record = record_of(a.step, a.pool, request, head);
      const int count = (record.length + part_slots - 1) / part_slots;
      jobs.push_back({static_cast<int64_t>(parts.size()), count});
      for (int i = 0; i < count; ++i) {
        const int left = record.length - i * part_slots;
        parts.push_back(
            {request, head, i * a.part_pages, std::min(left, part_slots), nullptr, nullptr});
        job_of_part.push_back(static_cast<int64_t>(jobs.size()) - 1);
      }
      if (count > 1 && values_tokens(record.rule)) kept_scores += count;
    }
  }

  const int64_t num_parts = static_cast<int64_t>(parts.size());
  const int64_t workspace = decode_workspace(a) + scores_size;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  thread_local Scratch scratch;
  float* states =
      scratch.floats(num_parts * state_size + kept_scores * scores_size + threads * workspace);
  float* scores = states + num_parts * state_size;
  float* workspaces = scores + kept_scores * scores_size;
  std::unique_ptr<std::atomic<int>[]> waiting(new std::atomic<int>[jobs.size()]);
  for (size_t j = 0; j < jobs.size(); ++j) {
    waiting[j].store(jobs[j].count, std::memory_order_relaxed);
    DecodePart* part = &parts[jobs[j].first];
    const HeadRecord& record = record_of(a.step, a.pool, part->request, part->head);
    for (int i = 0; i < jobs[j].count; ++i) {
      part[i].state = states + (jobs[j].first + i) * state_size;
      if (jobs[j].count > 1 && values_tokens(record.rule)) {
        part[i].scores = scores;
        scores += scores_size;
      }
    }
  }

  const Kernels& kernel = kernels();
  for_each_item_ahead(num_parts, [&](int64_t worker, int64_t item, int64_t following) {
    DecodePart& part = parts[item];
    float* rows = workspaces + worker * workspace;
    if (part.scores == nullptr) part.scores = rows + decode_workspace(a);
    kernel.decode_part(a, part, parts[following], rows);
    const int64_t job = job_of_part[item];
    // Who finishes a head's last part merges them all.
    if (waiting[job].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      kernel.decode_finish(a, &parts[jobs[job].first], jobs[job].count);
    }
  });
}

}  // namespace fastgen::cpu
