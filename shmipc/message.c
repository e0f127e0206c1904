// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Sending and receiving: the arguments' checks, and the short way, which a
// message takes when there is room, or one is there.

#include <string.h>

#include "shmipc/channel_internal.h"

// The port may be used for this.
static inline int check(const shmipc_port_t *port, uint32_t role) {
  if (__builtin_expect(port->view.region->serial != port->serial, 0)) {
    return -ECHILD;
  }
  return __builtin_expect(port->role != role, 0) ? -EPERM : 0;
}

// There is a message at hand.
static inline int check_at_hand(const shmipc_port_t *port, uint32_t role) {
  int status = check(port, role);
  return status == 0 && !port->has_message ? -EINVAL : status;
}

// Sequentially consistent: after the claim of a cell, or the commit.
static inline bool is_shut(const shmipc_port_t *port) {
  return __atomic_load_n(&port->view.channel->is_shut, __ATOMIC_SEQ_CST) != 0;
}

// Whether a sender is to be told something before it sends.
static inline bool has_news(const shmipc_port_t *port) {
  const shmipc_channel_t *channel = port->view.channel;
  return __atomic_load_n(&channel->is_shut, __ATOMIC_ACQUIRE) != 0 ||
         __atomic_load_n(&channel->deaths[SHMIPC_RECEIVER - 1],
                         __ATOMIC_ACQUIRE) != port->deaths_told;
}

static inline int reserve(shmipc_port_t *port, size_t len, int64_t timeout_ns) {
  int status = check(port, SHMIPC_SENDER);
  if (__builtin_expect(status < 0, 0)) {
    return status;
  }
  uint64_t most = port->view.message_bytes;
  if (len > most || (port->view.is_fixed && len != most)) {
    return -EMSGSIZE;
  }
  if (port->has_message) {
    return -EBUSY;
  }
  if (__builtin_expect(has_news(port), 0)) {
    status = shmipc_port_look(port, len);
    if (status < 0) {
      return status;
    }
  }
  status = port->view.kind == SHMIPC_SPSC ? shmipc_spsc_reserve(port, len)
                                          : shmipc_port_attempt(port, len);
  if (__builtin_expect(status == -EAGAIN, 0)) {
    status = shmipc_port_wait(port, len, timeout_ns);
  }
  // Before the claim receivers may have been told that nothing comes.
  if (port->view.kind == SHMIPC_MPMC && status == 0 &&
      __builtin_expect(is_shut(port), 0)) {
    shmipc_mpmc_abort(port);
    return -EPIPE;
  }
  return status;
}

static inline int peek(shmipc_port_t *port, int64_t timeout_ns) {
  int status = check(port, SHMIPC_RECEIVER);
  if (__builtin_expect(status < 0, 0)) {
    return status;
  }
  if (port->has_message) {
    return -EBUSY;
  }
  status = port->view.kind == SHMIPC_SPSC ? shmipc_spsc_peek(port)
                                          : shmipc_mpmc_peek(port);
  return __builtin_expect(status == -EAGAIN, 0)
             ? shmipc_port_wait(port, 0, timeout_ns)
             : status;
}

// MPMC: receivers wait for what is being written. SPSC: they cannot see it, and
// may have been told that nothing comes; what is committed before `is_shut` is
// seen here comes before that, as the receiver has our store done before it
// believes that (have_what_was_sent in port_wait.c).
static inline int commit(shmipc_port_t *port, size_t len) {
  if (port->view.kind == SHMIPC_SPSC) {
    shmipc_spsc_commit(port, len);
    return __builtin_expect(is_shut(port), 0) ? -EPIPE : 0;
  }
  shmipc_mpmc_commit(port, len);
  return 0;
}

// Short ones are copied here: a call and memcpy's choice of a way are a third
// of what they cost.
#define UNIT 16u
#define SHORT_BYTES 128u

static inline void copy_unit(unsigned char *to, const unsigned char *from) {
  uint64_t unit[2];
  memcpy(unit, from, sizeof(unit));
  memcpy(to, unit, sizeof(unit));
}

// From the end: the receiver looks at the line with the beginning all the time.
// When that is written last, its word follows at once, and it goes over once.
static inline void copy_in(unsigned char *to, const void *data, size_t len) {
  if (len < UNIT || len > SHORT_BYTES) {
    if (len != 0) {
      memcpy(to, data, len);
    }
    return;
  }
  const unsigned char *from = data;
  copy_unit(to + len - UNIT, from + len - UNIT);
  for (size_t i = (len - 1) / UNIT * UNIT; i != 0; i -= UNIT) {
    copy_unit(to + i - UNIT, from + i - UNIT);
  }
}

static inline void copy_out(void *buffer, const unsigned char *from,
                            size_t len) {
  if (len < UNIT || len > SHORT_BYTES) {
    if (len != 0) {
      memcpy(buffer, from, len);
    }
    return;
  }
  unsigned char *to = buffer;
  for (size_t i = 0; i < len - UNIT; i += UNIT) {
    copy_unit(to + i, from + i);
  }
  copy_unit(to + len - UNIT, from + len - UNIT);
}

static inline void release(shmipc_port_t *port) {
  if (port->view.kind == SHMIPC_SPSC) {
    shmipc_spsc_release(port);
  } else {
    shmipc_mpmc_release(port);
  }
}

int shmipc_port_send(shmipc_port_t *port, const void *data, size_t len,
                     int64_t timeout_ns) {
  int status = reserve(port, len, timeout_ns);
  if (status < 0) {
    return status;
  }
  copy_in(port->payload, data, len);
  return commit(port, len);
}

int shmipc_port_receive(shmipc_port_t *port, void *buffer, size_t size_bytes,
                        size_t *out_len, int64_t timeout_ns) {
  int status = peek(port, timeout_ns);
  if (status < 0) {
    return status;
  }
  size_t len = port->len;
  *out_len = len;
  if (len > size_bytes) {
    // It stays: SPSC where it is; MPMC as if we had died with it.
    if (port->view.kind == SHMIPC_SPSC) {
      port->has_message = false;
    } else {
      shmipc_mpmc_return(port);
    }
    return -EMSGSIZE;
  }
  copy_out(buffer, port->payload, len);
  release(port);
  return 0;
}

int shmipc_port_reserve(shmipc_port_t *port, size_t len, void **out_data,
                        int64_t timeout_ns) {
  int status = reserve(port, len, timeout_ns);
  if (status == 0) {
    *out_data = port->payload;
  }
  return status;
}

int shmipc_port_commit(shmipc_port_t *port, size_t len) {
  int status = check_at_hand(port, SHMIPC_SENDER);
  if (status < 0) {
    return status;
  }
  if (len > port->len || (port->view.is_fixed && len != port->len)) {
    return -EMSGSIZE;
  }
  return commit(port, len);
}

int shmipc_port_abort(shmipc_port_t *port) {
  int status = check_at_hand(port, SHMIPC_SENDER);
  if (status == 0 && port->view.kind == SHMIPC_MPMC) {
    shmipc_mpmc_abort(port);
  }
  if (status == 0) {
    // SPSC: nobody has seen anything.
    port->has_message = false;
  }
  return status;
}

int shmipc_port_peek(shmipc_port_t *port, const void **out_data,
                     size_t *out_len, int64_t timeout_ns) {
  int status = peek(port, timeout_ns);
  if (status == 0) {
    *out_data = port->payload;
    *out_len = port->len;
  }
  return status;
}

int shmipc_port_release(shmipc_port_t *port) {
  int status = check_at_hand(port, SHMIPC_RECEIVER);
  if (status == 0) {
    release(port);
  }
  return status;
}
