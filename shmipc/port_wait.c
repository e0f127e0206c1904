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
// is running, several microseconds from one that sleeps. So a wait first looks
// without a pause, then with pauses for 10 microseconds. Where that was in vain
// four times in turn (both processes on one CPU; a sender that is slow) waits
// look only shortly, but for every 32nd.

#include <limits.h>

#include "shmipc/channel_internal.h"
#include "shmipc/futex.h"

#define WAITERS 1u
#define QUICK_LOOKS 64
#define PAUSED_LOOKS 8
#define SPIN_NS 10000
#define MISSES_MAX 4u
#define RETRY_EVERY 32u

// Returns the status of the last try.
static int spin(shmipc_port_t *port, size_t len) {
  int status = -EAGAIN;
  for (int i = 0; i < QUICK_LOOKS && status == -EAGAIN; i++) {
    status = shmipc_port_attempt(port, len);
  }
  if (status != -EAGAIN || (port->num_misses >= MISSES_MAX &&
                            ++port->num_waits % RETRY_EVERY != 0)) {
    return status;
  }
  int64_t end = shmipc_now_ns() + SPIN_NS;
  do {
    for (int i = 0; i < PAUSED_LOOKS && status == -EAGAIN; i++) {
      shmipc_pause();
      status = shmipc_port_attempt(port, len);
    }
  } while (status == -EAGAIN && shmipc_now_ns() < end);
  port->num_misses = status == -EAGAIN ? port->num_misses + 1 : 0;
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
      if (shmipc_futex_wait(word, marked, deadline) == -ETIMEDOUT) {
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
