// Decode attention: one query per request over the ragged pages of each head.
//
//   decode_pieces  A fixed number of blocks share all pages of the layer evenly: block b takes the
//                  pages [b * share, (b + 1) * share) of the line on which all heads of all
//                  requests follow each other. So no block waits for a long head, and the launch
//                  has the same shape whatever the lengths are. Every block works out the line from
//                  the records itself (R*H lengths, from the second-level cache). Where block b
//                  meets head j it leaves one unmerged softmax state, at states[j + b]: both only
//                  grow along the line, so no two pieces meet in one place.
//   decode_finish  grid (R*H, parts of a head): merges the states of a head in the order of blocks,
//                  writes the output rows and, for heads that value tokens, adds the pooled
//                  probabilities, or their squares, to `values`.
//
// Within decode_pieces each of four warps takes tiles of slots in turn. A lane holds the same 16
// bytes of K and of V of every slot that it sees, and of the G queries; it copies them
// asynchronously to its own place in shared memory, two tiles ahead, and reads back nothing but
// what it copied itself, so that no barrier is needed until the piece is done. Neighbouring lanes
// copy neighbouring vectors. K and V are read once for up to eight query heads; more are done eight
// by eight, from the second-level cache. Scores of heads that value tokens go to scratch, and are
// computed twice where that is full. Which pages a block takes depends on the whole step, so
// results are those of another order of summation when other requests run, as in vLLM's own split
// kernels; they are the same in every run of the same step.
//
// Shared memory: 48 KiB (96 KiB for float32 with D > 128), so four blocks on an SM of an H100.
// Bytes: 2 * D elements per slot, the least possible; a state of 8 * G * (D + 2) bytes written and
// read per piece; 8 * G per slot of a head that values tokens. R 64, N 2,048, H 8, G 4, D 128,
// bf16: 537 MB, by bandwidth 0.35 ms on an A100 (1.5 TB/s) and 0.16 ms on an H100 (3.3 TB/s).
// Arithmetic: some 12 * G + 8 instructions of a warp per slot at D = 128, at G = 4 a third of what
// an H100 issues in that time; matrix units begin to pay beyond G = 8. Untested on hardware:
// everything.
#pragma once

#include "cuda/decode_finish.h"
#include "cuda/decode_pieces.h"
