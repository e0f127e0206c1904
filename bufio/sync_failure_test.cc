// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A real fsync that fails: a loop device whose backing file is on a tmpfs that
// is full. The kernel accepts the bytes into its cache, cannot write them, says
// EIO once, and then says 0; the writer must not.
//
// Needs root, in a mount namespace of its own; skipped otherwise.

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

class SyncFailureTest : public testing::Test {
 protected:
  ~SyncFailureTest() override {
    if (device_ >= 0) {
      if (is_set_) {
        ioctl(device_, LOOP_CLR_FD, 0);
      }
      close(device_);
    }
    if (backing_ >= 0) {
      close(backing_);
    }
    umount2(folder_.c_str(), MNT_DETACH);
    rmdir(folder_.c_str());
  }

  // The reason why there is no such device here, or "".
  std::string Prepare() {
    if (geteuid() != 0) {
      return "not root";
    }
    if (unshare(CLONE_NEWNS) != 0 ||
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return std::string("no mount namespace: ") + strerror(errno);
    }
    mkdir(folder_.c_str(), 0700);
    if (mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=1m") != 0) {
      return std::string("no tmpfs: ") + strerror(errno);
    }
    backing_ = open((folder_ + "/disk").c_str(), O_RDWR | O_CREAT, 0600);
    // Four times what the tmpfs can hold.
    if (backing_ < 0 || ftruncate(backing_, 4 << 20) != 0) {
      return "no backing file";
    }
    int control = open("/dev/loop-control", O_RDWR);
    if (control < 0) {
      return "no /dev/loop-control";
    }
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    close(control);
    device_ = open(("/dev/loop" + std::to_string(number)).c_str(), O_RDWR);
    if (device_ < 0 || ioctl(device_, LOOP_SET_FD, backing_) != 0) {
      return "no loop device";
    }
    is_set_ = true;
    return "";
  }

  std::string folder_ = bufio_testing::TempPath("tmpfs");
  int backing_ = -1;
  int device_ = -1;
  bool is_set_ = false;  // The device is ours: somebody else may be faster.
};

TEST_F(SyncFailureTest, FailedSyncOfTheKernelIsFinal) {
  std::string reason = Prepare();
  if (!reason.empty()) {
    GTEST_SKIP() << reason;
  }
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_POWER;
  ASSERT_EQ(bufio_writer_attach(&writer, device_, &options), 0);
  std::string text = bufio_testing::Pattern(0, 3 << 20);
  ASSERT_EQ(bufio_writer_write(&writer, text.data(), text.size()), 0);
  EXPECT_EQ(bufio_writer_sync(&writer), -EIO);
  // What the kernel says of the same file now, which others would believe.
  EXPECT_EQ(fdatasync(device_), 0);
  EXPECT_EQ(bufio_writer_sync(&writer), -EIO);
  EXPECT_EQ(bufio_writer_resume(&writer), -EIO);
  EXPECT_EQ(bufio_writer_puts(&writer, "x"), -EIO);
  EXPECT_EQ(bufio_writer_close(&writer), -EIO);
}

}  // namespace
