// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A descriptor for poll loops, which nobody has to pass to anybody.
//
// Each port that polls has a datagram socket of its own, with a name in the
// abstract namespace made of 64 random bits, which it writes into its entry.
// Whoever notifies sends it an empty datagram, if it is armed. Nothing is left
// of it when its process dies.
//
//   epoll   <- what the caller polls
//    |- socket   a notification
//    '- timer    4 ms after it was armed, or 1 ms
//
// The timer is what a slice is to those that sleep: a sender may be killed
// between its message and its datagram, or may not reach the socket (another
// network namespace), and a dead peer notifies nobody.
//
// Whoever arms sets `is_armed`, then the bit in the event's word, and then
// tries: see port_wait.c.

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "shmipc/channel_internal.h"

// Less than the worst stall that is allowed.
#define TIMER_NS 4000000
// Of one whose bit may not be seen (port_fence.c).
#define UNFENCED_TIMER_NS 1000000
// More than a queue holds by itself; anybody may send to an abstract name.
#define DRAINS_MAX 16

static socklen_t address_of(uint64_t name, struct sockaddr_un *out_address) {
  memset(out_address, 0, sizeof(*out_address));
  out_address->sun_family = AF_UNIX;
  // The first byte is 0: abstract.
  int len =
      snprintf(out_address->sun_path + 1, sizeof(out_address->sun_path) - 1,
               "shmipc.%016llx", (unsigned long long)name);
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

static int open_socket(shmipc_port_t *port, uint64_t *out_name) {
  if (getrandom(out_name, sizeof(*out_name), 0) != sizeof(*out_name)) {
    return -EAGAIN;
  }
  *out_name |= 1;
  struct sockaddr_un address;
  socklen_t len = address_of(*out_name, &address);
  port->socket_fd =
      socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (port->socket_fd < 0 ||
      bind(port->socket_fd, (struct sockaddr *)&address, len) != 0) {
    return -errno;
  }
  return 0;
}

static int watch(const shmipc_port_t *port, int fd) {
  struct epoll_event event = {.events = EPOLLIN};
  return epoll_ctl(port->poll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static int open_all(shmipc_port_t *port, uint64_t *out_name) {
  port->poll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (port->poll_fd < 0) {
    return -errno;
  }
  port->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  if (port->timer_fd < 0) {
    return -errno;
  }
  int status = open_socket(port, out_name);
  if (status == 0) {
    status = watch(port, port->socket_fd);
  }
  return status == 0 ? watch(port, port->timer_fd) : status;
}

static void close_fd(int *fd) {
  if (*fd >= 0) {
    (void)close(*fd);
    *fd = -1;
  }
}

static void close_own(shmipc_port_t *port) {
  close_fd(&port->socket_fd);
  close_fd(&port->timer_fd);
  close_fd(&port->poll_fd);
}

void shmipc_port_poll_close(shmipc_port_t *port) {
  int saved = errno;
  close_own(port);
  close_fd(&port->sending_fd);
  errno = saved;
}

int shmipc_port_fd(shmipc_port_t *port) {
  if (port->view.region->serial != port->serial) {
    return -ECHILD;
  }
  if (port->poll_fd >= 0) {
    return port->poll_fd;
  }
  int saved = errno;
  uint64_t name = 0;
  int status = open_all(port, &name);
  if (status < 0) {
    close_own(port);
    errno = saved;
    return status;
  }
  __atomic_store_n(&port->entry->socket, name, __ATOMIC_RELAXED);
  // Release: pairs with the acquire in shmipc_port_notify_polls.
  __atomic_store_n(&port->view.channel->sides[port->role - 1].polls, 1,
                   __ATOMIC_RELEASE);
  errno = saved;
  return port->poll_fd;
}

// What is left over ends the next poll for nothing.
static void drain(int fd) {
  char byte;
  for (int i = 0; i < DRAINS_MAX; i++) {
    if (recv(fd, &byte, sizeof(byte), MSG_DONTWAIT) < 0) {
      return;
    }
  }
}

// Makes it unreadable, too.
static void set_timer(const shmipc_port_t *port, long ns) {
  struct itimerspec timer = {.it_value = {.tv_sec = 0, .tv_nsec = ns}};
  (void)timerfd_settime(port->timer_fd, 0, &timer, NULL);
}

int shmipc_port_arm(shmipc_port_t *port) {
  if (port->view.region->serial != port->serial) {
    return -ECHILD;
  }
  if (port->poll_fd < 0) {
    return -EINVAL;
  }
  if (!shmipc_port_would_wait(port)) {
    // Nobody is to notify us: nobody will sleep.
    __atomic_store_n(&port->entry->is_armed, 0, __ATOMIC_RELAXED);
    return -EAGAIN;
  }
  int saved = errno;
  drain(port->socket_fd);
  set_timer(port, TIMER_NS);
  __atomic_store_n(&port->entry->is_armed, 1, __ATOMIC_SEQ_CST);
  __atomic_fetch_or(&port->view.channel->sides[port->role - 1].event.word, 1u,
                    __ATOMIC_SEQ_CST);
  if (!shmipc_port_fence_others(port)) {
    set_timer(port, UNFENCED_TIMER_NS);
  }
  errno = saved;
  if (shmipc_port_would_wait(port)) {
    return 0;
  }
  __atomic_store_n(&port->entry->is_armed, 0, __ATOMIC_RELAXED);
  return -EAGAIN;
}

static void notify(shmipc_port_t *port, uint64_t name) {
  if (port->sending_fd < 0) {
    port->sending_fd =
        socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  }
  struct sockaddr_un address;
  socklen_t len = address_of(name, &address);
  // Whatever comes of it: there is a timer.
  (void)sendto(port->sending_fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL,
               (struct sockaddr *)&address, len);
}

void shmipc_port_notify_polls(shmipc_port_t *port, uint32_t side) {
  const shmipc_view_t *view = &port->view;
  if (__atomic_load_n(&view->channel->sides[side].polls, __ATOMIC_ACQUIRE) ==
      0) {
    return;
  }
  int saved = errno;
  for (uint32_t i = 0; i < view->max_ports; i++) {
    shmipc_port_entry_t *entry = &view->channel->ports[i];
    uint64_t word = __atomic_load_n(&entry->word, __ATOMIC_ACQUIRE);
    if (SHMIPC_PORT_OWNER(word) == 0 || SHMIPC_PORT_ROLE(word) != side + 1 ||
        __atomic_load_n(&entry->is_armed, __ATOMIC_SEQ_CST) == 0 ||
        __atomic_exchange_n(&entry->is_armed, 0, __ATOMIC_SEQ_CST) == 0) {
      continue;
    }
    uint64_t name = __atomic_load_n(&entry->socket, __ATOMIC_RELAXED);
    if (name != 0) {
      notify(port, name);
    }
  }
  errno = saved;
}
