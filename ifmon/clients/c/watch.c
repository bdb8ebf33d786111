/* Prints what happens to an interface, until it is no longer the one with the given index.
 *
 * By sd-varlink of systemd 257 or later:
 *
 *     cc -o watch watch.c -lsystemd
 *     ./watch wg0 7
 *
 * Ends with 0 when the engine on top of the interface should restart. When the agent goes away, the
 * watch begins anew with the index, so that what happens meanwhile is told.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <systemd/sd-event.h>
#include <systemd/sd-json.h>
#include <systemd/sd-varlink.h>

/* How often in a row the agent may be away, a second each. */
#define ATTEMPTS 30

struct watch {
        const char *path;
        const char *interface;
        uint64_t index;
        sd_event *event;
        sd_varlink *link;
        int failures;
};

static int call(struct watch *watch);

static const char *text(sd_json_variant *event, const char *key) {
        sd_json_variant *value = sd_json_variant_by_key(event, key);
        return value && sd_json_variant_is_string(value) ? sd_json_variant_string(value) : "";
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        struct watch *watch = userdata;
        (void) source;
        (void) usec;
        /* An error of this function would but end the timer. */
        int r = call(watch);
        return r < 0 ? sd_event_exit(watch->event, r) : 0;
}

/* The agent has gone, or was not there. */
static int retry(struct watch *watch, int error) {
        watch->link = sd_varlink_close_unref(watch->link);
        if (++watch->failures > ATTEMPTS)
                return error;
        return sd_event_add_time_relative(watch->event, NULL, CLOCK_MONOTONIC, 1000000, 0, on_retry, watch);
}

static int on_reply(
                sd_varlink *link,
                sd_json_variant *event,
                const char *error,
                sd_varlink_reply_flags_t flags,
                void *userdata) {
        struct watch *watch = userdata;
        (void) link;
        (void) flags;

        if (error) {
                /* sd-varlink says in the same way that the connection has ended. */
                if (!strcmp(error, SD_VARLINK_ERROR_DISCONNECTED)) {
                        int r = retry(watch, -ECONNRESET);
                        return r < 0 ? sd_event_exit(watch->event, r) : 0;
                }
                fprintf(stderr, "the agent refuses: %s\n", error);
                return sd_event_exit(watch->event, -EINVAL);
        }
        watch->failures = 0;

        sd_json_variant *index = sd_json_variant_by_key(event, "ifindex");
        sd_json_variant *restart = sd_json_variant_by_key(event, "restart");
        printf("%s %s", text(event, "interface"), text(event, "event"));
        if (index && sd_json_variant_is_unsigned(index))
                printf(", index %llu", (unsigned long long) sd_json_variant_unsigned(index));
        if (*text(event, "to"))
                printf(", now %s", text(event, "to"));
        printf("\n");
        fflush(stdout);

        if (restart && sd_json_variant_is_boolean(restart) && sd_json_variant_boolean(restart))
                return sd_event_exit(watch->event, 0);
        return 0;
}

static int call(struct watch *watch) {
        int r = sd_varlink_connect_address(&watch->link, watch->path);
        if (r < 0)
                return retry(watch, r);
        sd_varlink_set_userdata(watch->link, watch);
        /* A watch has no end. */
        r = sd_varlink_set_relative_timeout(watch->link, UINT64_MAX);
        if (r >= 0)
                r = sd_varlink_bind_reply(watch->link, on_reply);
        if (r >= 0)
                r = sd_varlink_attach_event(watch->link, watch->event, SD_EVENT_PRIORITY_NORMAL);
        if (r >= 0)
                r = sd_varlink_observebo(
                                watch->link,
                                "io.ifmon.Watch",
                                SD_JSON_BUILD_PAIR("interfaces", SD_JSON_BUILD_ARRAY(SD_JSON_BUILD_STRING(watch->interface))),
                                SD_JSON_BUILD_PAIR("expect", SD_JSON_BUILD_OBJECT(SD_JSON_BUILD_PAIR(watch->interface, SD_JSON_BUILD_UNSIGNED(watch->index)))));
        return r < 0 ? retry(watch, r) : 0;
}

int main(int argc, char **argv) {
        if (argc < 3) {
                fprintf(stderr, "usage: %s INTERFACE IFINDEX [SOCKET]\n", argv[0]);
                return 2;
        }
        struct watch watch = {
                .path = argc > 3 ? argv[3] : "/run/ifmon/io.ifmon",
                .interface = argv[1],
                .index = strtoull(argv[2], NULL, 10),
        };
        int r = sd_event_default(&watch.event);
        if (r >= 0)
                r = call(&watch);
        if (r >= 0)
                r = sd_event_loop(watch.event);
        if (r < 0)
                fprintf(stderr, "cannot watch: %s\n", strerror(-r));
        sd_varlink_close_unref(watch.link);
        sd_event_unref(watch.event);
        return r < 0;
}
