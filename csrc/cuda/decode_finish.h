// Finish of decode attention: the states of a head's pieces become its output rows, and its
// probabilities the values of its tokens; see decode_attention.h.
#pragma once

#include "cuda/decode_jobs.h"

namespace fastgen {

constexpr int kFinishSlots = 2048;

// Score of one slot, for heads that value tokens and whose scores found no room.
template <typename T>
__device__ float score_again(const Jobs& jobs, int job, int g, const T* key) {
  const T* query = jobs.query<T>(job, g);
  float dot = 0.f;
  for (int first = 0; first < jobs.a.pool.head_size; first += Vector<T>::kSize) {
    const Vector<T> k = *reinterpret_cast<const Vector<T>*>(key + first);
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      dot += to_float(query[first + i]) * to_float(k.at[i]);
    }
  }
  return dot * jobs.a.scale * kLog2E;
}

template <typename T>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_finish(const __grid_constant__ DecodeArgs a, DecodeScratch scratch) {
  FASTGEN_DYNAMIC_SHARED(float, totals);  // [G] maxima, [G] inverse weights
  const Jobs jobs = {a, a.step.num_requests * a.pool.num_heads};
  const int job = blockIdx.x, group = a.group_size, d = a.pool.head_size;
  const HeadRecord* const record = jobs.record(job);
  if (record == nullptr) return;
  const bool values = values_tokens(record->rule);
  const int first_slot = blockIdx.y * kFinishSlots;
  if (blockIdx.y > 0 && (!values || first_slot >= record->length)) return;
  const int begin = scratch.first_page[job], end = scratch.first_page[job + 1];
  T* const output = reinterpret_cast<T*>(a.output) +
                    a.step.token_index[job / a.pool.num_heads] * a.output_token_stride +
                    job % a.pool.num_heads * group * a.output_head_stride;
  if (begin == end) {
    for (int i = threadIdx.x; blockIdx.y == 0 && i < group * d; i += kDecodeThreads) {
      output[i / d * a.output_head_stride + i % d] = from_float<T>(NAN);
    }
    return;
  }
  const int share = share_of_block(scratch.first_page[jobs.count], scratch.num_blocks);
  const int first_block = begin / share, last_block = (end - 1) / share;
  const float* states = scratch.states + (job + first_block) * state_floats(a);
  const int num_states = last_block - first_block + 1;

  for (int g = threadIdx.x; g < group; g += kDecodeThreads) {
    const float* most = states + group * d + g;
    const float* weight = most + group;
    float highest = most[0], total = 0.f;
    for (int i = 1; i < num_states; ++i) highest = fmaxf(highest, most[i * state_floats(a)]);
    for (int i = 0; i < num_states; ++i) {
      total += exp2f(most[i * state_floats(a)] - highest) * weight[i * state_floats(a)];
    }
    totals[g] = highest;
    totals[group + g] = 1.f / total;
  }
  __syncthreads();

  if (blockIdx.y == 0) {
    for (int i = threadIdx.x; i < group * d; i += kDecodeThreads) {
      const int g = i / d;
      float sum = 0.f;
      for (int s = 0; s < num_states; ++s) {
        const float* state = states + s * state_floats(a);
        sum += exp2f(state[group * d + g] - totals[g]) * state[i];
      }
      output[g * a.output_head_stride + i % d] = from_float<T>(sum * totals[group + g]);
    }
  }

  if (!values) return;
  const HeadRecord head = *record;
  const int slots = a.pool.page_slots;
  for (int first = first_slot; first < head.length; first += gridDim.y * kFinishSlots) {
    const int last = min(first + kFinishSlots, head.length);
    for (int slot = first + threadIdx.x; slot < last; slot += kDecodeThreads) {
      if (slot / slots < head.read_only) continue;
      if (!has_page(a.pool, jobs.row(job), head, slot / slots)) continue;
      const StreamPage page = head_page(a.pool, jobs.row(job), head, slot / slots);
      const T* key = reinterpret_cast<const T*>(page.data) + slot % slots * a.pool.slot_stride;
      const int line_page = begin + slot / slots;
      const float* scores = scratch.scores + (static_cast<int64_t>(begin) * slots + slot) * group;
      float pooled = pool_start(a.pooling);
      for (int g = 0; g < group; ++g) {
        const float score =
            line_page < scratch.scored_pages ? scores[g] : score_again(jobs, job, g, key);
        const float p = exp2f(score - totals[g]) * totals[group + g];
        pooled = pool_add(a.pooling, pooled, head.rule == kByEnergy ? p * p : p);
      }
      a.values[page.meta_slot + slot % slots] += pool_result(a.pooling, pooled, group);
    }
  }
}

}  // namespace fastgen
