// How a launcher of the CPU works: memory that it keeps, and ragged work handed out to torch's own
// threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

namespace fastgen {

// Rounds a number of floats up to whole cache lines, so that no vector straddles two.
inline int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// Memory that only grows: a fresh mapping per call would cost its page faults every time.
class Scratch {
 public:
  // Uninitialised room for `count` floats, valid until the next call; 64-byte aligned.
  float* floats(int64_t count) {
    if (count > capacity_) {
      ::operator delete[](data_, std::align_val_t(64));
      data_ = nullptr;
      capacity_ = 0;
      data_ = static_cast<float*>(
          ::operator new[](static_cast<size_t>(count) * sizeof(float), std::align_val_t(64)));
      capacity_ = count;
    }
    return data_;
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete[](data_, std::align_val_t(64)); }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Calls work(worker, item) for every item in [0, items); who is free takes the next one. Workers
// are numbered from 0 and below torch's number of threads. There is one for every `least` items, at
// most: a little work is not worth waking threads for.
template <typename Work>
void for_each_item(int64_t items, const Work& work, int64_t least = 1) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workers = std::clamp<int64_t>(items / least, 1, threads);
  if (workers == 1) {
    for (int64_t i = 0; i < items; ++i) work(0, i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < items; i = next++) work(worker, i);
  });
}

// Calls work(worker, item, following), where `following` is the item that this worker does next, or
// again the last one: taken ahead, so that its memory can be fetched ahead.
template <typename Work>
void for_each_item_ahead(int64_t items, const Work& work) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workers = std::clamp<int64_t>(items, 1, threads);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++, following; i < items; i = following) {
      following = next++;
      work(worker, i, std::min(following, items - 1));
    }
  });
}

}  // namespace fastgen
