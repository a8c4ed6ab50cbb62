// A plugin of the AssemblyScript SDK: it adds headers to both directions, and answers by itself.
export * from "@solo-io/proxy-runtime/proxy";
import {
  Context,
  FilterHeadersStatusValues,
  GrpcStatusValues,
  RootContext,
  log,
  LogLevelValues,
  registerRootContext,
  send_local_response,
  stream_context,
} from "@solo-io/proxy-runtime";

class PluginRoot extends RootContext {
  createContext(context_id: u32): Context {
    return new Plugin(context_id, this);
  }
}

class Plugin extends Context {
  constructor(context_id: u32, root_context: PluginRoot) {
    super(context_id, root_context);
  }

  onRequestHeaders(a: u32, end_of_stream: bool): FilterHeadersStatusValues {
    const path = stream_context.headers.request.get(":path");
    if (path.startsWith("/blocked")) {
      send_local_response(403, "blocked by the plugin", String.UTF8.encode("not here\n"), [], GrpcStatusValues.Unknown);
      return FilterHeadersStatusValues.StopIteration;
    }
    stream_context.headers.request.add("x-sdk", "assemblyscript");
    stream_context.headers.request.add("x-greeting", this.root_context.getConfiguration());
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(a: u32, end_of_stream: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-sdk", "assemblyscript");
    log(LogLevelValues.info, "status " + stream_context.headers.response.get(":status"));
    return FilterHeadersStatusValues.Continue;
  }
}

registerRootContext((context_id: u32) => {
  return new PluginRoot(context_id);
}, "sdk");
