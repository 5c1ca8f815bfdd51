// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/rpc_call.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/rpc.h"
#include "proto/validator.h"

enum { TIMEOUT_S = 30, READ_BYTES = 65536 };

struct rpc_connection {
  int fd;
  uint32_t next_id;
  uint8_t *input; /* one message */
  size_t input_size, input_room;
  msgpack_zone *zone;
};

/* Another user's daemon is asked only by who names its socket. */
static int check_peer(int fd, const char *path, bool given, struct error *error) {
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
    return error_set_errno(error, errno, "cannot find out who listens at %s", path);
  if (!given && peer.uid != geteuid() && peer.uid != 0)
    return error_set(error, ERR_DENIED, "user %lu listens at %s, not you; if you mean that one, give --socket",
                     (unsigned long)peer.uid, path);
  return 0;
}

static int connect_socket(const char *path, bool given, struct error *error) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (!path[0] || strlen(path) >= sizeof address.sun_path)
    return error_set(error, ERR_ARGUMENT, "the socket's path is empty or has more than %zu bytes: '%s'",
                     sizeof address.sun_path - 1, path);
  memcpy(address.sun_path, path, strlen(path) + 1);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return error_set_errno(error, errno, "cannot make a socket");
  if (connect(fd, (const struct sockaddr *)&address, sizeof address)) {
    int reason = errno;
    close(fd);
    if (reason == ENOENT || reason == ECONNREFUSED || reason == ENOTDIR) {
      error_set(error, ERR_UNREACHABLE, "no daemon listens at %s; start coldkvd", path);
      return -ERR_UNREACHABLE;
    }
    return error_set_errno(error, reason, "cannot connect to %s", path);
  }
  struct timeval timeout = {.tv_sec = TIMEOUT_S};
  int result = check_peer(fd, path, given, error);
  if (!result && (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) ||
                  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout)))
    result = error_set_errno(error, errno, "cannot set a time limit for %s", path);
  if (result) {
    close(fd);
    return result;
  }
  return fd;
}

int rpc_connect(struct rpc_connection **connection, const char *path, bool given, struct error *error) {
  *connection = NULL;
  int fd = connect_socket(path, given, error);
  if (fd == -ERR_UNREACHABLE)
    return 1;
  if (fd < 0)
    return fd;
  struct rpc_connection *made = calloc(1, sizeof *made);
  msgpack_zone *zone = made ? msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE) : NULL;
  if (!zone) {
    free(made);
    close(fd);
    return error_set(error, ERR_MEMORY, "out of memory for a connection");
  }
  made->fd = fd;
  made->zone = zone;
  *connection = made;
  return 0;
}

void rpc_disconnect(struct rpc_connection *connection) {
  if (!connection)
    return;
  close(connection->fd);
  msgpack_zone_free(connection->zone);
  free(connection->input);
  free(connection);
}

static int send_all(int fd, const char *data, size_t size, struct error *error) {
  while (size) {
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent < 0)
      return error_set_errno(error, errno, "cannot send to the daemon");
    data += sent;
    size -= (size_t)sent;
  }
  return 0;
}

static int make_room(struct rpc_connection *c, struct error *error) {
  if (c->input_room - c->input_size >= READ_BYTES)
    return 0;
  size_t room = 2 * c->input_room + READ_BYTES;
  uint8_t *input = realloc(c->input, room);
  if (!input)
    return error_set(error, ERR_MEMORY, "out of memory for an answer of more than %zu bytes", c->input_size);
  c->input = input;
  c->input_room = room;
  return 0;
}

/* Receives one whole message. There is one request at a time, so nothing may follow it. */
static int receive(struct rpc_connection *c, struct error *error) {
  struct validator validator;
  validator_init(&validator, &validator_limits_default);
  c->input_size = 0;
  while (!validator.done) {
    int result = make_room(c, error);
    if (result)
      return result;
    ssize_t got = recv(c->fd, c->input + c->input_size, READ_BYTES, 0);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return error_set(error, ERR_TIMEOUT, "no answer from the daemon within %d s", TIMEOUT_S);
    if (got < 0)
      return error_set_errno(error, errno, "cannot receive from the daemon");
    if (got == 0)
      return error_set(error, ERR_IO, "the daemon hung up");
    size_t used;
    result = validator_feed(&validator, c->input + c->input_size, (size_t)got, &used, error);
    if (result)
      return error_prefix(error, "answer of the daemon");
    if (used != (size_t)got)
      return error_set(error, ERR_BAD_MESSAGE, "the daemon sent more than was asked for");
    c->input_size += used;
  }
  return 0;
}

int rpc_call(struct rpc_connection *c, enum method_id method, const void *params, void *result, struct error *error) {
  uint32_t id = c->next_id++;
  msgpack_sbuffer request;
  msgpack_packer packer;
  msgpack_sbuffer_init(&request);
  msgpack_packer_init(&packer, &request, msgpack_sbuffer_write);
  int status = rpc_pack_request(&packer, id, method, params);
  if (status)
    error_set(error, ERR_MEMORY, "out of memory for a request");
  else
    status = send_all(c->fd, request.data, request.size, error);
  msgpack_sbuffer_destroy(&request);
  if (!status)
    status = receive(c, error);
  msgpack_object root;
  struct rpc rpc;
  if (!status) {
    msgpack_zone_clear(c->zone);
    status = rpc_parse(c->input, c->input_size, c->zone, &root, &rpc, error);
  }
  if (status)
    return status;
  if (rpc.kind == RPC_NOTIFICATION)
    return rpc_fault(rpc.body, error);
  if (rpc.kind != RPC_RESPONSE || rpc.id != id)
    return error_set(error, ERR_BAD_MESSAGE, "the daemon answered what was not asked");
  if (rpc.fault)
    return rpc_fault(rpc.fault, error);
  return message_unpack(methods[method].result, rpc.body, result, error);
}
