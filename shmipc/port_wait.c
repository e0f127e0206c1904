// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Waiting at a channel's end: looking, and then sleeping on an event's word.
//
// The waiter sets the bit in the word, tries once more, and sleeps while the
// word is just that. Whoever changes what is waited for looks at the word after
// that, and notifies only if it has the bit (event.c). In between each needs a
// barrier; port_fence.c says whose it is. So one of the two sees the other. No
// sleep is longer than a slice (a sender may be killed between its store and
// its look).
//
// The peers are asked for by the clock, not after a slice without a wake-up:
// who is woken again and again, by messages behind a dead sender's or by
// signals, has no such slice.
//
// How long to look: a reply takes some hundred nanoseconds from a process that
// is running, and as long as a wake-up takes, 5 to 50 microseconds, from one
// that sleeps. Looking for longer than that brings two that sleep in turn back
// to spinning. Where it was in vain four times in turn (both on one CPU; a
// sender that is slow), it is left out more and more often, up to 1,024 waits
// at a time, but for some quick looks.

#include <limits.h>

#include "shmipc/channel_internal.h"
#include "shmipc/futex.h"

#define WAITERS 1u
// Longer than a tick of the kernel with 250 of them a second: a timer before
// the next tick has to be set in the hardware, which makes a wait twice as long
// in a virtual machine. Shorter than the worst stall that is allowed.
#define SLICE_NS ((int64_t)5000000)
// While somebody is writing the message, and so is about to be done, or dead.
#define PENDING_SLICE_NS ((int64_t)1000000)
// Of one that may have missed a store, or whose bit may not be seen.
#define UNFENCED_SLICE_NS ((int64_t)1000000)
// Of one that expects a reply soon, and of one that does not.
#define QUICK_LOOKS 400
#define FEW_LOOKS 4
#define FEW_MESSAGES 4u
// Of 20 to 60 ns each, and what they take at most.
#define REST_PAUSES 128u
#define REST_NS 10000
#define PAUSED_LOOKS 8
#define SPIN_NS 50000
#define MISSES_MIN 4u
#define MISSES_MAX 14u

// Messages since the last wait, about.
static uint64_t count_moved(shmipc_port_t *port) {
  uint64_t moved = port->position - port->waited_at;
  bool has_wrapped = port->position < port->waited_at;
  port->waited_at = port->position;
  if (port->view.kind == SHMIPC_MPMC) {
    return moved;
  }
  moved += has_wrapped ? port->view.ring_bytes : 0;
  return moved / shmipc_record_bytes(port->len);
}

// One that has had several messages since its last wait is faster than the
// other end. It leaves it the cache lines for a while, so that there are
// several again, and more each time; to look at each at once would cost a cache
// miss a message at both ends.
static void rest_if_streaming(shmipc_port_t *port, int64_t deadline) {
  uint64_t moved = count_moved(port);
  if (moved <= FEW_MESSAGES ||
      (deadline >= 0 && shmipc_has_passed(deadline - REST_NS))) {
    return;
  }
  for (uint64_t i = 0; i < moved && i < REST_PAUSES; i++) {
    shmipc_pause();
  }
}

// Returns the status of the last try.
static int spin(shmipc_port_t *port, size_t len, int64_t deadline) {
  int status = -EAGAIN;
  rest_if_streaming(port, deadline);
  int num_looks = port->waits_to_skip > 0 ? FEW_LOOKS : QUICK_LOOKS;
  for (int i = 0; i < num_looks && status == -EAGAIN; i++) {
    status = shmipc_port_attempt(port, len);
  }
  if (status != -EAGAIN) {
    return status;
  }
  if (port->waits_to_skip > 0) {
    port->waits_to_skip--;
    return status;
  }
  int64_t end = shmipc_now_ns() + SPIN_NS;
  bool is_short = deadline >= 0 && deadline < end;
  end = is_short ? deadline : end;
  do {
    for (int i = 0; i < PAUSED_LOOKS && status == -EAGAIN; i++) {
      shmipc_pause();
      status = shmipc_port_attempt(port, len);
    }
  } while (status == -EAGAIN && shmipc_now_ns() < end);
  if (status != -EAGAIN) {
    port->num_misses = 0;
  } else if (!is_short && port->num_misses < MISSES_MAX) {
    port->num_misses++;
  }
  if (port->num_misses >= MISSES_MIN) {
    port->waits_to_skip = 1u << (port->num_misses - MISSES_MIN);
  }
  return status;
}

static uint32_t deaths_of_peers(const shmipc_port_t *port) {
  // Acquire: what the dead have left is there. Sequentially consistent, for
  // those that have marked the word before.
  return __atomic_load_n(
      &port->view.channel->deaths[shmipc_other_side(port->role)],
      __ATOMIC_SEQ_CST);
}

// There was a death that has not been told, and nobody is left.
static bool is_deserted(shmipc_port_t *port) {
  uint32_t deaths = deaths_of_peers(port);
  if (deaths == port->deaths_told) {
    return false;
  }
  if (shmipc_port_has_peer(port)) {
    port->deaths_told = deaths;
    return false;
  }
  return true;
}

// SPSC: what a sender has committed, and not seen `is_shut` after that, is
// there; it may have been in its store buffer when we saw that. (MPMC: such a
// message has a cell that says so, by a compare-and-swap before that look.)
static void have_what_was_sent(shmipc_port_t *port) {
  if (port->view.kind == SHMIPC_MPMC || port->role == SHMIPC_SENDER ||
      port->has_seen_shut) {
    return;
  }
  if (!shmipc_barrier_in_all()) {
    // No store buffer holds anything for that long.
    int64_t end_ns = shmipc_now_ns() + UNFENCED_SLICE_NS;
    struct timespec end = {.tv_sec = end_ns / 1000000000,
                           .tv_nsec = end_ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) ==
           EINTR) {
    }
  }
  port->has_seen_shut = true;
}

int shmipc_port_look(shmipc_port_t *port, size_t len) {
  // Acquire: what was sent before is there.
  bool is_shut =
      __atomic_load_n(&port->view.channel->is_shut, __ATOMIC_SEQ_CST) != 0;
  bool sends = port->role == SHMIPC_SENDER;
  if (!is_shut && !is_deserted(port)) {
    return 0;
  }
  // A receiver has all messages first: the one that came in just now, and the
  // one that a dead receiver had, which is there only after it was asked for.
  // (Those that died together are told once.)
  int again = sends ? -EAGAIN : shmipc_port_attempt(port, len);
  if (again == -EAGAIN && !port->is_pending && !(sends && is_shut)) {
    shmipc_port_check_peers(port);
  }
  uint32_t deaths = deaths_of_peers(port);
  if (is_shut) {
    have_what_was_sent(port);
  }
  if (again == -EAGAIN && !sends) {
    again = shmipc_port_attempt(port, len);
  }
  if (again != -EAGAIN) {
    return again == 0 ? 1 : again;
  }
  if (port->is_pending && !sends) {
    return 0;
  }
  if (is_shut) {
    return -EPIPE;
  }
  port->deaths_told = deaths;
  return -EOWNERDEAD;
}

bool shmipc_port_would_wait(shmipc_port_t *port) {
  const shmipc_channel_t *channel = port->view.channel;
  if (__atomic_load_n(&channel->is_shut, __ATOMIC_SEQ_CST) != 0 ||
      is_deserted(port)) {
    return false;
  }
  return port->view.kind == SHMIPC_SPSC ? shmipc_spsc_would_wait(port)
                                        : shmipc_mpmc_would_wait(port);
}

// Asks for the peers if that is `interval` ago. Whether it has.
static bool check_at_intervals(shmipc_port_t *port, int64_t interval) {
  int64_t now = shmipc_now_ns();
  if (now - port->checked_ns < interval) {
    return false;
  }
  port->checked_ns = now;
  shmipc_port_check_peers(port);
  return true;
}

// Sets the bit; returns the word.
static uint32_t mark(uint32_t *word) {
  // Sequentially consistent: before the try that follows.
  return __atomic_or_fetch(word, WAITERS, __ATOMIC_SEQ_CST);
}

static int sleep_once(shmipc_port_t *port, uint32_t marked, bool is_fenced,
                      int64_t deadline) {
  uint32_t *word = &port->view.channel->sides[port->role - 1].event.word;
  if (shmipc_has_passed(deadline)) {
    return -ETIMEDOUT;
  }
  int64_t slice = is_fenced ? SLICE_NS : UNFENCED_SLICE_NS;
  if (port->is_pending) {
    // Until it is time to ask whether its sender lives.
    slice = port->checked_ns + PENDING_SLICE_NS - shmipc_now_ns();
    slice = slice < 1 ? 1 : slice;
  }
  (void)shmipc_futex_wait_slice(word, marked, deadline, slice);
  return 0;
}

// Sleeps until it can be had. Several messages (MPMC: places) may have become
// so by one change that has woken two: see pass_on.
static int sleep_until(shmipc_port_t *port, size_t len, int64_t deadline) {
  for (;;) {
    uint32_t marked =
        mark(&port->view.channel->sides[port->role - 1].event.word);
    bool is_fenced = shmipc_port_fence_others(port);
    int status = shmipc_port_attempt(port, len);
    if (status == -EAGAIN &&
        check_at_intervals(port,
                           port->is_pending ? PENDING_SLICE_NS : SLICE_NS)) {
      status = shmipc_port_attempt(port, len);
    }
    if (status == -EAGAIN) {
      status = shmipc_port_look(port, len);
      if (status == 0) {
        status = sleep_once(port, marked, is_fenced, deadline);
      }
      if (status != 0) {
        return status > 0 ? 0 : status;
      }
      status = shmipc_port_attempt(port, len);
    }
    if (status != -EAGAIN) {
      return status;
    }
  }
}

// Messages that were behind one that was being written have woken those that
// slept, for nothing; the commit of that one wakes two. Whoever has slept and
// got one wakes others if there is a next; also without the bit, which whoever
// woke us may be about to put back: it sees the count then, and wakes all.
static void pass_on(shmipc_port_t *port) {
  if (port->view.kind == SHMIPC_MPMC && !shmipc_mpmc_would_wait(port)) {
    shmipc_port_notify_slow(port, port->role - 1);
  }
}

int shmipc_port_wait(shmipc_port_t *port, size_t len, int64_t timeout_ns) {
  if (timeout_ns == 0) {
    (void)check_at_intervals(port, SHMIPC_SLICE_NS);
    int status = shmipc_port_attempt(port, len);
    if (status == -EAGAIN) {
      status = shmipc_port_look(port, len);
      return status == 0 ? -ETIMEDOUT : status > 0 ? 0 : status;
    }
    return status;
  }
  int64_t deadline = shmipc_deadline(timeout_ns);
  int status = spin(port, len, deadline);
  if (status == -EAGAIN) {
    status = sleep_until(port, len, deadline);
    if (status == 0) {
      pass_on(port);
    }
  }
  return status;
}

void shmipc_port_notify_slow(shmipc_port_t *port, uint32_t side) {
  shmipc_event_notify_one(port->view.region,
                          &port->view.channel->sides[side].event);
  shmipc_port_notify_polls(port, side);
}

void shmipc_port_notify_all(shmipc_port_t *port) {
  for (uint32_t side = 0; side < 2; side++) {
    shmipc_event_notify_all(port->view.region,
                            &port->view.channel->sides[side].event);
    shmipc_port_notify_polls(port, side);
  }
}
