// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/listener.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/budget.h"
#include "daemon/connection.h"
#include "daemon/server.h"
#include "daemon/socket.h"
#include "proto/rpc.h"

#define ACCEPTS_AT_ONCE 32 /* then those that are connected get their turn */
#define PAUSE_MS 100u

/* Says why, if the peer's socket takes it at once, and hangs up. */
static void refuse(struct listener *listener, int fd, const struct error *error) {
  atomic_fetch_add(&listener->server->counters.refused, 1);
  if (log_may(&listener->log, uv_now(&listener->server->loop)))
    log_line("refused a connection: %s", error->text);
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  if (rpc_pack_goodbye(&packer, error) == 0) {
    ssize_t sent = send(fd, buffer.data, buffer.size, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent;
  }
  msgpack_sbuffer_destroy(&buffer);
  close(fd);
}

static int admit(struct server *server, uint32_t uid, struct user **user, struct error *error) {
  const struct options *options = server->options;
  if (server->connection_count >= options->connections)
    return error_set(error, ERR_LIMIT, "there are %llu connections, as many as the daemon takes",
                     (unsigned long long)options->connections);
  *user = user_of(server, uid);
  if (!*user)
    return error_set(error, ERR_MEMORY, "out of memory for a connection");
  if ((*user)->connections >= options->user_connections) {
    user_release(server, *user);
    return error_set(error, ERR_LIMIT, "user %u has %llu connections, as many as one user may", uid,
                     (unsigned long long)options->user_connections);
  }
  return 0;
}

static void welcome(struct listener *listener, int fd) {
  struct server *server = listener->server;
  struct error error = {0};
  struct user *user = NULL;
  uint32_t uid;
  int result = access_check(&server->options->access, fd, &uid, &error);
  if (!result)
    result = admit(server, uid, &user, &error);
  if (result) {
    refuse(listener, fd, &error);
    return;
  }
  struct connection *connection = connection_create(server, user);
  if (!connection) {
    user_release(server, user);
    error_set(&error, ERR_MEMORY, "out of memory for a connection");
    refuse(listener, fd, &error);
    return;
  }
  atomic_fetch_add(&server->counters.connections_total, 1);
  if (uv_pipe_open(&connection->pipe, fd)) {
    close(fd);
    connection_close(connection);
    return;
  }
  connection_start(connection);
}

static void on_pending(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer) {
  struct listener *listener = timer->data;
  uv_poll_start(&listener->poll, UV_READABLE, on_pending);
}

/* Descriptors or memory have run out. Who waits goes on waiting; trying at once would only spin. */
static void pause_accepting(struct listener *listener, int reason) {
  if (log_may(&listener->log, uv_now(&listener->server->loop)))
    log_line("cannot accept a connection: %s; trying again", uv_strerror(-reason));
  uv_poll_stop(&listener->poll);
  uv_timer_start(&listener->pause, on_pause_over, PAUSE_MS, 0);
}

static void on_pending(uv_poll_t *poll, int status, int events) {
  struct listener *listener = poll->data;
  (void)events;
  if (status < 0) {
    pause_accepting(listener, -status);
    return;
  }
  for (int i = 0; i < ACCEPTS_AT_ONCE; i++) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      welcome(listener, fd);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED)
      continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      pause_accepting(listener, errno);
    return;
  }
}

/* Remembers which file it is. */
static void note_file(struct listener *listener, const char *path) {
  struct stat status;
  listener->made = stat(path, &status) == 0;
  listener->device = status.st_dev;
  listener->inode = status.st_ino;
}

int listener_open(struct listener *listener, struct server *server, struct error *error) {
  const struct options *options = server->options;
  int result = 0;
  listener->server = server;
  if (listener->fd < 0) {
    result = socket_listen(options->socket, access_shared(&options->access), &listener->fd, error);
    if (!result)
      note_file(listener, options->socket);
  }
  if (result)
    return result;
  listener->poll.data = listener->pause.data = listener;
  int status = uv_poll_init(&server->loop, &listener->poll, listener->fd);
  if (status) {
    close(listener->fd);
    listener->fd = -1;
    return error_set(error, ERR_IO, "cannot watch the socket: %s", uv_strerror(status));
  }
  uv_timer_init(&server->loop, &listener->pause);
  uv_poll_start(&listener->poll, UV_READABLE, on_pending);
  return 0;
}

void listener_close(struct listener *listener) {
  struct stat status;
  if (listener->fd < 0)
    return;
  const char *path = listener->server->options->socket;
  if (listener->made && stat(path, &status) == 0 && status.st_dev == listener->device &&
      status.st_ino == listener->inode)
    unlink(path);
  uv_close((uv_handle_t *)&listener->poll, NULL); /* stops watching at once, so that the descriptor may go */
  uv_close((uv_handle_t *)&listener->pause, NULL);
  close(listener->fd);
  listener->fd = -1;
}
