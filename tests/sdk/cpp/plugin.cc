// A plugin in C++ on the bare ABI (the C++ SDK is no package of a registry): it reads a header, adds one, and answers by itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#define IMPORT(name) extern "C" __attribute__((import_module("env"), import_name(#name))) uint32_t name
#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

IMPORT(proxy_get_header_map_value)(uint32_t map, const char* key, size_t key_size, char** value, size_t* value_size);
IMPORT(proxy_add_header_map_value)(uint32_t map, const char* key, size_t key_size, const char* value, size_t value_size);
IMPORT(proxy_send_local_response)(uint32_t code, const char* details, size_t details_size, const char* body, size_t body_size,
                                  const char* headers, size_t headers_size, uint32_t grpc_status);
IMPORT(proxy_log)(uint32_t level, const char* text, size_t size);

namespace {

constexpr uint32_t kRequest = 0;
constexpr uint32_t kResponse = 2;

std::string header(uint32_t map, std::string_view name) {
  char* value = nullptr;
  size_t size = 0;
  if (proxy_get_header_map_value(map, name.data(), name.size(), &value, &size) != 0) {
    return "";
  }
  std::string out(value, size);
  free(value);
  return out;
}

void add(uint32_t map, std::string_view name, std::string_view value) {
  proxy_add_header_map_value(map, name.data(), name.size(), value.data(), value.size());
}

}  // namespace

EXPORT(proxy_abi_version_0_2_1) void marker() {}
EXPORT(malloc) void* allocate(size_t size) { return ::malloc(size); }
EXPORT(proxy_on_vm_start) uint32_t on_vm_start(uint32_t, uint32_t) { return 1; }
EXPORT(proxy_on_configure) uint32_t on_configure(uint32_t, uint32_t) { return 1; }

EXPORT(proxy_on_request_headers) uint32_t on_request_headers(uint32_t, uint32_t, uint32_t) {
  const std::string path = header(kRequest, ":path");
  if (path.rfind("/blocked", 0) == 0) {
    constexpr std::string_view kBody = "not here\n";
    constexpr std::string_view kDetails = "blocked by the plugin";
    proxy_send_local_response(403, kDetails.data(), kDetails.size(), kBody.data(), kBody.size(), nullptr, 0, uint32_t(-1));
    return 1;
  }
  add(kRequest, "x-sdk", "c++");
  add(kRequest, "x-path-was", path);
  return 0;
}

EXPORT(proxy_on_response_headers) uint32_t on_response_headers(uint32_t, uint32_t, uint32_t) {
  add(kResponse, "x-sdk", "c++");
  const std::string text = "status " + header(kResponse, ":status");
  proxy_log(2, text.data(), text.size());
  return 0;
}
