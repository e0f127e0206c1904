// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Waiting at a channel's end: looking, and then sleeping on an event's word.
//
// The waiter sets the bit in the word, tries once more, and sleeps while the
// word is just that. Whoever changes what is waited for does so by an exchange,
// then looks at the word, and notifies only if it has the bit (event.c). Both
// are full barriers between a store and a load, so one of the two sees the
// other. No sleep is longer than a slice (a sender may be killed between its
// exchange and its look); after a whole one the peers are asked for.
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
// Of one that expects a reply soon, and of one that does not.
#define QUICK_LOOKS 400
#define FEW_LOOKS 32
#define FEW_MESSAGES 4u
#define REST_PAUSES 32
#define PAUSED_LOOKS 8
#define SPIN_NS 50000
#define MISSES_MIN 4u
#define MISSES_MAX 14u

// One that has had several messages since its last wait is faster than the
// other end. It leaves it the cache lines for a while, so that there are
// several again; to look at each at once would cost a cache miss a message at
// both ends.
static void rest_if_streaming(shmipc_port_t *port) {
  uint64_t moved = port->position - port->waited_at;
  port->waited_at = port->position;
  if (moved > (port->view.kind == SHMIPC_SPSC
                   ? FEW_MESSAGES * shmipc_record_bytes(port->len)
                   : FEW_MESSAGES)) {
    for (int i = 0; i < REST_PAUSES; i++) {
      shmipc_pause();
    }
  }
}

// A short message is in two lines. The second is written first, so it can come
// while the first is still with the sender.
static void prefetch_second_line(const shmipc_port_t *port) {
  if (port->view.kind == SHMIPC_SPSC && port->role == SHMIPC_RECEIVER) {
    __builtin_prefetch(port->view.ring + port->position + 8 + SHMIPC_LINE);
  }
}

// Returns the status of the last try.
static int spin(shmipc_port_t *port, size_t len) {
  int status = -EAGAIN;
  rest_if_streaming(port);
  int num_looks = port->waits_to_skip > 0 ? FEW_LOOKS : QUICK_LOOKS;
  for (int i = 0; i < num_looks && status == -EAGAIN; i++) {
    prefetch_second_line(port);
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
  do {
    for (int i = 0; i < PAUSED_LOOKS && status == -EAGAIN; i++) {
      shmipc_pause();
      status = shmipc_port_attempt(port, len);
    }
  } while (status == -EAGAIN && shmipc_now_ns() < end);
  if (status != -EAGAIN) {
    port->num_misses = 0;
  } else if (port->num_misses < MISSES_MAX) {
    port->num_misses++;
  }
  if (port->num_misses >= MISSES_MIN) {
    port->waits_to_skip = 1u << (port->num_misses - MISSES_MIN);
  }
  return status;
}

int shmipc_port_look(shmipc_port_t *port, size_t len) {
  const shmipc_channel_t *channel = port->view.channel;
  bool sends = port->role == SHMIPC_SENDER;
  // Acquire: what was sent before is there.
  int status =
      __atomic_load_n(&channel->is_shut, __ATOMIC_ACQUIRE) != 0 ? -EPIPE : 0;
  uint32_t deaths = __atomic_load_n(
      &channel->deaths[shmipc_other_side(port->role)], __ATOMIC_ACQUIRE);
  if (status == 0 && deaths != port->deaths_told) {
    if (shmipc_port_has_peer(port)) {
      port->deaths_told = deaths;
    } else {
      status = -EOWNERDEAD;
    }
  }
  if (status == 0) {
    return 0;
  }
  // A receiver has all messages first, also the one that came in just now.
  if (!sends) {
    int again = shmipc_port_attempt(port, len);
    if (again != -EAGAIN) {
      return again == 0 ? 1 : again;
    }
    if (port->is_pending) {
      return 0;
    }
  }
  if (status == -EOWNERDEAD) {
    port->deaths_told = deaths;
  }
  return status;
}

bool shmipc_port_would_wait(shmipc_port_t *port) {
  const shmipc_channel_t *channel = port->view.channel;
  if (__atomic_load_n(&channel->is_shut, __ATOMIC_SEQ_CST) != 0 ||
      (__atomic_load_n(&channel->deaths[shmipc_other_side(port->role)],
                       __ATOMIC_SEQ_CST) != port->deaths_told &&
       !shmipc_port_has_peer(port))) {
    return false;
  }
  return port->view.kind == SHMIPC_SPSC ? shmipc_spsc_would_wait(port)
                                        : shmipc_mpmc_would_wait(port);
}

// Asks for the peers now and then, where nobody waits.
static void check_at_intervals(shmipc_port_t *port) {
  int64_t now = shmipc_now_ns();
  if (now >= port->next_check_ns) {
    port->next_check_ns = now + SHMIPC_SLICE_NS;
    shmipc_port_check_peers(port);
  }
}

// Sets the bit; returns the word.
static uint32_t mark(uint32_t *word) {
  // Sequentially consistent: before the try that follows.
  return __atomic_or_fetch(word, WAITERS, __ATOMIC_SEQ_CST);
}

static int sleep_until(shmipc_port_t *port, size_t len, int64_t deadline) {
  uint32_t *word = &port->view.channel->sides[port->role - 1].event.word;
  for (;;) {
    uint32_t marked = mark(word);
    int status = shmipc_port_attempt(port, len);
    if (status == -EAGAIN) {
      status = shmipc_port_look(port, len);
      if (status != 0) {
        return status > 0 ? 0 : status;
      }
      if (shmipc_has_passed(deadline)) {
        return -ETIMEDOUT;
      }
      if (shmipc_futex_wait_slice(
              word, marked, deadline,
              port->is_pending ? PENDING_SLICE_NS : SLICE_NS) == -ETIMEDOUT) {
        shmipc_port_check_peers(port);
      }
      status = shmipc_port_attempt(port, len);
    }
    if (status != -EAGAIN) {
      return status;
    }
  }
}

int shmipc_port_wait(shmipc_port_t *port, size_t len, int64_t timeout_ns) {
  if (timeout_ns == 0) {
    check_at_intervals(port);
    int status = shmipc_port_attempt(port, len);
    if (status == -EAGAIN) {
      status = shmipc_port_look(port, len);
      return status == 0 ? -ETIMEDOUT : status > 0 ? 0 : status;
    }
    return status;
  }
  int64_t deadline = shmipc_deadline(timeout_ns);
  int status = spin(port, len);
  return status == -EAGAIN ? sleep_until(port, len, deadline) : status;
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
