// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Who has the barrier between "store what is waited for" and "look whether
// somebody sleeps".
//
//   one that notifies            one that waits
//   store what is waited for     set the bit
//   barrier                      barrier
//   load the bit                 load what is waited for
//
// Without both, each may miss the other: the load may be done while the store
// is still in the processor's store buffer. A barrier of one's own costs little
// where the line of the store is at hand; but that line is with the other CPU,
// and so each message would wait for it, where otherwise the stores queue up
// and the loads of the next messages are under way meanwhile: 41 against 31 ns
// for 64 bytes.
//
// So the one that waits has the other's barrier done for it: it calls
// membarrier(2) between its two steps. Whatever was stored before that by
// anybody who has registered is seen now, and whoever stores later sees the
// bit. One that notifies needs nothing but the compiler's order.
//
// That call costs as much as a wake-up if the other is running. Those that
// sleep at each message would have it each time; so a side also has a mode, in
// the line of the bit:
//
//   PLAIN ---> ASKED ---> FENCED        by those that wait
//     ^          |          |
//     '----------'----------'           by those that notify, a new count
//
// 1. In any mode but PLAIN those that notify have a barrier of their own, after
//    the store and the load of the mode, before the load of the bit.
// 2. FENCED says that there was a membarrier after ASKED, by whoever changed it
//    (by compare-and-swap, with the count: it is no later ASKED). So since then
//    everybody who notifies and has not seen the barrier has seen the mode, and
//    those that wait need no call: they set the bit, then look at the mode, and
//    then at what they wait for.
// 3. Whoever has notified QUIET_MAX times and found nobody makes it PLAIN. Who
//    has seen FENCED before that, and sleeps, has set the bit before; so who
//    sees PLAIN, and looks for the bit after that, sees the bit.
//
// Registering is a process's (its memory's); threads have it, a child of fork
// would have its parent's on Linux 6.18, and exec ends it. None of that is
// relied on: `shmipc_port_open` registers, and a child opens its own ports. A
// process that cannot register has a barrier of its own each time, whatever the
// mode. One that cannot call the other's, nor finds FENCED, sleeps for 1 ms at
// most: a store buffer is empty long before that.
//
// The mode may say anything, as all of the region may: what is lost then is a
// wake-up, for the length of a slice.

#include "shmipc/barrier.h"
#include "shmipc/channel_internal.h"

// About what a membarrier costs, in barriers of one's own.
#define QUIET_MAX 64u

bool shmipc_port_fence_others(shmipc_port_t *port) {
  uint32_t *fence = &port->view.channel->sides[port->role - 1].fence;
  // Sequentially consistent: after the bit.
  uint32_t seen = __atomic_load_n(fence, __ATOMIC_SEQ_CST);
  if (SHMIPC_FENCE_MODE(seen) == SHMIPC_FENCED) {
    return true;
  }
  uint32_t asked = SHMIPC_FENCE_WORD(SHMIPC_FENCE_COUNT(seen), SHMIPC_ASKED);
  // If another has changed it: the call is for us alone.
  bool has_asked = seen == asked || __atomic_compare_exchange_n(
                                        fence, &seen, asked, false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  if (!shmipc_barrier_in_all()) {
    return false;
  }
  if (has_asked) {
    uint32_t fenced =
        SHMIPC_FENCE_WORD(SHMIPC_FENCE_COUNT(asked), SHMIPC_FENCED);
    (void)__atomic_compare_exchange_n(fence, &asked, fenced, false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  }
  return true;
}

static void make_plain(uint32_t *fence) {
  uint32_t seen = __atomic_load_n(fence, __ATOMIC_RELAXED);
  if (SHMIPC_FENCE_MODE(seen) != SHMIPC_PLAIN) {
    uint32_t plain =
        SHMIPC_FENCE_WORD(SHMIPC_FENCE_COUNT(seen) + 1, SHMIPC_PLAIN);
    (void)__atomic_compare_exchange_n(fence, &seen, plain, false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
  }
}

void shmipc_port_notify_fenced(shmipc_port_t *port, uint32_t side) {
  shmipc_side_t *theirs = &port->view.channel->sides[side];
  shmipc_barrier_own();
  // Sequentially consistent: as in shmipc_port_notify.
  if ((__atomic_load_n(&theirs->event.word, __ATOMIC_SEQ_CST) & 1u) != 0) {
    port->num_quiet = 0;
    shmipc_port_notify_slow(port, side);
  } else if (++port->num_quiet >= QUIET_MAX) {
    port->num_quiet = 0;
    make_plain(&theirs->fence);
  }
}
