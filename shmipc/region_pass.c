// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Regions passed as descriptors.
//
// What is passed is a descriptor of another open file than the attachment's:
// the locks of that one are our life, and whoever had a copy of it would keep
// us alive.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shmipc/region_internal.h"

int shmipc_region_share_fd(shmipc_region_t *region) {
  if (region->serial == 0) {
    return region->status;
  }
  if (region->backend == SHMIPC_SYSV) {
    return -EOPNOTSUPP;
  }
  char path[40];
  (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", region->fd);
  int fd = open(path, (region->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  return fd >= 0 ? fd : -errno;
}

// One byte of data, and room for one descriptor.
typedef struct packet {
  char byte;
  struct iovec part;
  struct msghdr message;
  union {
    struct cmsghdr align;
    unsigned char bytes[CMSG_SPACE(2 * sizeof(int))];
  } control;
} packet_t;

static void packet_init(packet_t *packet, size_t control_len) {
  memset(packet, 0, sizeof(*packet));
  packet->part.iov_base = &packet->byte;
  packet->part.iov_len = 1;
  packet->message.msg_iov = &packet->part;
  packet->message.msg_iovlen = 1;
  packet->message.msg_control = packet->control.bytes;
  packet->message.msg_controllen = control_len;
}

int shmipc_region_send(shmipc_region_t *region, int socket) {
  int fd = shmipc_region_share_fd(region);
  if (fd < 0) {
    return fd;
  }
  packet_t packet;
  packet_init(&packet, CMSG_SPACE(sizeof(int)));
  struct cmsghdr *control = CMSG_FIRSTHDR(&packet.message);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(control), &fd, sizeof(fd));
  ssize_t len;
  do {
    len = sendmsg(socket, &packet.message, MSG_NOSIGNAL);
  } while (len < 0 && errno == EINTR);
  int status = len == 1 ? 0 : -errno;
  close(fd);
  return status;
}

// Stores up to two received descriptors; returns how many.
static int descriptors_of(struct msghdr *message, int *fds) {
  int count = 0;
  for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control != NULL;
       control = CMSG_NXTHDR(message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    size_t len = control->cmsg_len - CMSG_LEN(0);
    for (size_t i = 0; i + sizeof(int) <= len && count < 2; i += sizeof(int)) {
      memcpy(&fds[count++], CMSG_DATA(control) + i, sizeof(int));
    }
  }
  return count;
}

int shmipc_region_receive(int socket, const shmipc_region_options_t *options,
                          shmipc_region_t **out_region) {
  packet_t packet;
  packet_init(&packet, sizeof(packet.control.bytes));
  ssize_t len;
  do {
    len = recvmsg(socket, &packet.message, MSG_CMSG_CLOEXEC);
  } while (len < 0 && errno == EINTR);
  if (len < 0) {
    return -errno;
  }
  int fds[2];
  int count = descriptors_of(&packet.message, fds);
  int status = -EPROTO;
  if (count == 1 && (packet.message.msg_flags & MSG_CTRUNC) == 0) {
    status = shmipc_region_open_fd(fds[0], options, out_region);
  }
  for (int i = 0; i < count; i++) {
    close(fds[i]);
  }
  return status;
}
