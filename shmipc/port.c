// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Ports: who is at the ends of a channel, and what becomes of the dead's.
//
// An entry names an attachment, so that the kernel says whether it lives
// (presence.c), and counts its openings. It is taken by a compare-and-swap from
// a free one; SPSC has one for each role.
//
// Recovery of a dead port: its message (mpmc.c; SPSC needs nothing), then the
// count of deaths, then the entry, by a compare-and-swap from the dead one's
// very word, then a wake-up of everybody. A death counts if no port of its role
// is alive then: the last one's does, whoever recovers it. Two may be at it at
// once, and one may die in between, or be stopped between its last look at the
// entry and the count: each step can be repeated, at the price of a death that
// is counted twice, so that someone may be told of it twice.
//
// Whoever asks for peers asks the kernel: an entry that is there may be one of
// the dead whose death was counted just now.

#include <assert.h>
#include <stdlib.h>

#include "shmipc/channel_internal.h"

static uint64_t load(const uint64_t *word) {
  // Acquire: pairs with the changes of entries.
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static bool change(uint64_t *word, uint64_t from, uint64_t to) {
  return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED);
}

bool shmipc_port_is_alive(const shmipc_view_t *view, uint64_t entry_word) {
  const shmipc_region_t *region = view->region;
  uint32_t owner = SHMIPC_PORT_OWNER(entry_word);
  uint32_t slot = SHMIPC_OWNER_SLOT(owner);
  if (owner == 0 || slot >= region->num_slots) {
    return false;
  }
  // One that was recovered, or closed its region with its ports open.
  uint32_t taken =
      __atomic_load_n(&shmipc_slot_of(region, slot)->word, __ATOMIC_ACQUIRE);
  // A word that says free while its lock is held is a damaged one (or about to
  // change): the kernel's answer counts.
  return ((taken & SHMIPC_SLOT_TAKEN) == 0 ||
          SHMIPC_OWNER(slot, taken >> 1) == owner) &&
         shmipc_record_is_alive(region, owner);
}

static uint64_t free_word(uint64_t word) {
  return SHMIPC_PORT_WORD(0, 0, SHMIPC_PORT_GENERATION(word));
}

// Not one that is there still, but has died.
static bool has_living(const shmipc_view_t *view, uint32_t role) {
  for (uint32_t i = 0; i < view->max_ports; i++) {
    uint64_t word = load(&view->channel->ports[i].word);
    if (SHMIPC_PORT_OWNER(word) != 0 && SHMIPC_PORT_ROLE(word) == role &&
        shmipc_port_is_alive(view, word)) {
      return true;
    }
  }
  return false;
}

static void recover(shmipc_port_t *port, uint32_t index, uint64_t word) {
  shmipc_channel_t *channel = port->view.channel;
  uint32_t role = SHMIPC_PORT_ROLE(word);
  if (port->view.kind == SHMIPC_MPMC) {
    shmipc_mpmc_recover(&port->view, index, word);
  }
  // Look again: another may have been at it, long ago.
  if ((role == SHMIPC_SENDER || role == SHMIPC_RECEIVER) &&
      !has_living(&port->view, role) &&
      load(&channel->ports[index].word) == word) {
    __atomic_fetch_add(&channel->deaths[role - 1], 1, __ATOMIC_ACQ_REL);
  }
  (void)change(&channel->ports[index].word, word, free_word(word));
  shmipc_port_notify_all(port);
}

void shmipc_port_check_peers(shmipc_port_t *port) {
  const shmipc_view_t *view = &port->view;
  for (uint32_t i = 0; i < view->max_ports; i++) {
    uint64_t word = load(&view->channel->ports[i].word);
    if (SHMIPC_PORT_OWNER(word) != 0 && i != port->index &&
        !shmipc_port_is_alive(view, word)) {
      recover(port, i, word);
    }
  }
}

bool shmipc_port_has_peer(const shmipc_port_t *port) {
  return has_living(&port->view, shmipc_other_side(port->role) + 1);
}

// Takes the entry if it is free.
static bool take(shmipc_port_t *port, uint32_t index) {
  shmipc_region_t *region = port->view.region;
  shmipc_port_entry_t *entry = &port->view.channel->ports[index];
  uint64_t seen = load(&entry->word);
  uint32_t generation = (SHMIPC_PORT_GENERATION(seen) + 1) & 0x3fffffffu;
  uint64_t word =
      SHMIPC_PORT_WORD(SHMIPC_OWNER(region->slot, region->slot_generation),
                       port->role, generation);
  if (SHMIPC_PORT_OWNER(seen) != 0 || !change(&entry->word, seen, word)) {
    return false;
  }
  __atomic_store_n(&entry->socket, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->is_armed, 0, __ATOMIC_RELEASE);
  port->entry = entry;
  port->index = index;
  port->word = word;
  port->id = SHMIPC_CELL_ID(index, generation);
  return true;
}

static int take_any(shmipc_port_t *port) {
  if (port->view.kind == SHMIPC_SPSC) {
    return take(port, port->role - 1) ? 0 : -EBUSY;
  }
  for (uint32_t i = 0; i < port->view.max_ports; i++) {
    if (take(port, i)) {
      return 0;
    }
  }
  return -EUSERS;
}

static void give_up(shmipc_port_t *port) {
  (void)change(&port->entry->word, port->word, free_word(port->word));
}

int shmipc_port_open(shmipc_region_t *region, void *channel, shmipc_role_t role,
                     shmipc_port_t **out_port) {
  shmipc_view_t view;
  int status = shmipc_view_make(region, channel, &view);
  if (status < 0) {
    return status;
  }
  if (region->read_only) {
    return -EROFS;
  }
  if (role != SHMIPC_SENDER && role != SHMIPC_RECEIVER) {
    return -EINVAL;
  }
  int saved = errno;
  shmipc_port_t *port = calloc(1, sizeof(*port));
  errno = saved;
  if (port == NULL) {
    return -ENOMEM;
  }
  port->view = view;
  port->serial = region->serial;
  port->role = role;
  port->index = UINT32_MAX;
  // Each time: it costs little, and nobody has to know what a child inherits.
  port->always_fences = shmipc_barrier_register() ? 0 : UINT32_MAX;
  port->poll_fd = port->socket_fd = port->timer_fd = port->sending_fd = -1;
  // What was before us is not told.
  shmipc_port_check_peers(port);
  port->deaths_told = __atomic_load_n(
      &view.channel->deaths[shmipc_other_side(role)], __ATOMIC_ACQUIRE);
  status = take_any(port);
  if (status == 0) {
    status = view.kind == SHMIPC_SPSC ? shmipc_spsc_attach(port)
                                      : shmipc_mpmc_attach(port);
    if (status < 0) {
      give_up(port);
    }
  }
  if (status < 0) {
    shmipc_port_poll_close(port);
    free(port);
    return status;
  }
  *out_port = port;
  return 0;
}

void shmipc_port_close(shmipc_port_t *port) {
  if (port == NULL) {
    return;
  }
  // A child of fork has nothing to give up.
  if (port->view.region->serial == port->serial) {
    if (port->has_message && port->view.kind == SHMIPC_MPMC) {
      if (port->role == SHMIPC_SENDER) {
        shmipc_mpmc_abort(port);
      } else {
        shmipc_mpmc_return(port);
      }
    }
    give_up(port);
  }
  shmipc_port_poll_close(port);
  free(port);
}

int shmipc_port_shut(shmipc_port_t *port) {
  if (port->view.region->serial != port->serial) {
    return -ECHILD;
  }
  // Sequentially consistent: before the look for those that sleep.
  __atomic_store_n(&port->view.channel->is_shut, 1, __ATOMIC_SEQ_CST);
  shmipc_port_notify_all(port);
  return 0;
}
