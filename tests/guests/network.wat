;; A network filter that logs each callback with what it was told and what its buffers hold, and does what the data say.
;;
;; The configuration's first letter is what `on_new_connection` does, its second what a tick every 20 ms does to the
;; connection that came last (`.`: there is none), its third, if there is one, what data to the client do. Else the first byte
;; that a data callback can see is what that does:
;;
;; | letter | |
;; |---|---|
;; | `#` | stop |
;; | `!` | trap |
;; | `$`, `%` | close the downstream, the upstream; stop |
;; | `^` | close the downstream; continue |
;; | `&` | continue_stream(downstream); stop |
;; | `=` | the data become `<replaced>` |
;; | `(` | `<before>` is put before the data |
;; | `)` | `<after>` is appended |
;; | `~` | stop, unless it is the end |
;; | `@` | the first byte is taken away |
;; | `+` | the first byte is taken away; continue_stream(downstream); stop. In a tick: as soon as there is data |
;; | `|` | the property that follows is logged |
;; | `?` | likewise, and the data are taken away |
;; | anything else | continue |
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_status" (func $buffer_status (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (memory (export "memory") 4)
  (global $at (mut i32) (i32.const 65536))
  (global $last (mut i32) (i32.const 0))
  (data (i32.const 32) "0..")
  (data (i32.const 64) "root create new down up downclose upclose done log delete tick [")
  (data (i32.const 160) "<replaced><before><after>")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 131072))
  ;; A line to log: text, numbers after a space.
  (func $text (param $from i32) (param $len i32)
    (memory.copy (global.get $at) (local.get $from) (local.get $len))
    (global.set $at (i32.add (global.get $at) (local.get $len))))
  (func $char (param $char i32)
    (i32.store8 (global.get $at) (local.get $char))
    (global.set $at (i32.add (global.get $at) (i32.const 1))))
  (func $digits (param $number i32)
    (if (i32.ge_u (local.get $number) (i32.const 10))
      (then (call $digits (i32.div_u (local.get $number) (i32.const 10)))))
    (call $char (i32.add (i32.const 48) (i32.rem_u (local.get $number) (i32.const 10)))))
  (func $number (param $number i32)
    (call $char (i32.const 32))
    (call $digits (local.get $number)))
  (func $flush
    (drop (call $log (i32.const 2) (i32.const 65536) (i32.sub (global.get $at) (i32.const 65536))))
    (global.set $at (i32.const 65536)))
  ;; What a buffer holds, as `[status:length:data]`.
  (func $hold (param $which i32)
    (local $status i32)
    (call $char (i32.const 32))
    (call $char (i32.const 91))
    (i32.store (i32.const 4) (i32.const 0))
    (drop (call $buffer_status (local.get $which) (i32.const 8) (i32.const 12)))
    (local.set $status (call $buffer (local.get $which) (i32.const 0) (i32.const 60) (i32.const 0) (i32.const 4)))
    (call $digits (local.get $status))
    (call $char (i32.const 58))
    (call $digits (i32.load (i32.const 8)))
    (call $char (i32.const 58))
    (if (i32.eqz (local.get $status))
      (then (call $text (i32.load (i32.const 0)) (i32.load (i32.const 4)))))
    (call $char (i32.const 93)))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 4)))
    (memory.copy (i32.const 32) (i32.load (i32.const 0)) (i32.load (i32.const 4)))
    (if (i32.ne (i32.load8_u (i32.const 33)) (i32.const 46)) (then (drop (call $tick (i32.const 20)))))
    (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32)
    (if (local.get 1) (then
      (global.set $last (local.get 0))
      (call $text (i32.const 69) (i32.const 6)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush))))
  (func $act (param $letter i32) (param $which i32) (result i32)
    (if (i32.eq (local.get $letter) (i32.const 35)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 33)) (then (unreachable)))
    (if (i32.eq (local.get $letter) (i32.const 36)) (then
      (call $number (call $close (i32.const 2))) (call $flush) (return (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 37)) (then
      (call $number (call $close (i32.const 3))) (call $flush) (return (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 94)) (then
      (call $number (call $close (i32.const 2))) (call $flush) (return (i32.const 0))))
    (if (i32.eq (local.get $letter) (i32.const 38)) (then
      (call $number (call $continue (i32.const 3)))
      (call $number (call $continue (i32.const 2)))
      (call $hold (local.get $which)) (call $flush) (return (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 61)) (then
      (call $number (call $set (local.get $which) (i32.const 0) (i32.const 0x7fffffff) (i32.const 160) (i32.const 10)))
      (call $hold (local.get $which)) (call $flush)))
    (if (i32.eq (local.get $letter) (i32.const 43)) (then
      (call $number (call $set (local.get $which) (i32.const 0) (i32.const 1) (i32.const 160) (i32.const 0)))
      (call $number (call $continue (i32.const 2)))
      (call $flush) (return (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 64)) (then
      (call $number (call $set (local.get $which) (i32.const 0) (i32.const 1) (i32.const 160) (i32.const 0)))
      (call $hold (local.get $which)) (call $flush)))
    (if (i32.eq (local.get $letter) (i32.const 40)) (then
      (call $number (call $set (local.get $which) (i32.const 0) (i32.const 0) (i32.const 170) (i32.const 8)))
      (call $hold (local.get $which)) (call $flush)))
    (if (i32.eq (local.get $letter) (i32.const 41)) (then
      (call $number (call $set (local.get $which) (i32.const 0x7fffffff) (i32.const 0) (i32.const 178) (i32.const 7)))
      (call $hold (local.get $which)) (call $flush)))
    (i32.const 0))
  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (call $text (i32.const 76) (i32.const 3)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush)
    (call $act (i32.load8_u (i32.const 32)) (i32.const 2)))
  (func $data (param $which i32) (param $size i32) (param $end i32) (result i32)
    (local $at i32)
    (local $len i32)
    (call $number (local.get $size))
    (call $number (local.get $end))
    (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush)
    (if (i32.eqz (local.get $size)) (then (return (i32.const 0))))
    (if (i32.and (i32.eq (local.get $which) (i32.const 3)) (i32.ne (i32.load8_u (i32.const 34)) (i32.const 46)))
      (then (return (call $act (i32.load8_u (i32.const 34)) (local.get $which)))))
    (drop (call $buffer (local.get $which) (i32.const 0) (i32.const 100) (i32.const 0) (i32.const 4)))
    (local.set $at (i32.load (i32.const 0)))
    (local.set $len (i32.load (i32.const 4)))
    (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 126))
      (then (return (i32.eqz (local.get $end)))))
    (if (i32.or (i32.eq (i32.load8_u (local.get $at)) (i32.const 124)) (i32.eq (i32.load8_u (local.get $at)) (i32.const 63))) (then
      ;; The path is moved to where the next allocation does not lie; its dots become what separates segments.
      (memory.copy (i32.const 200000) (local.get $at) (local.get $len))
      (call $text (i32.const 200000) (local.get $len))
      (local.set $at (i32.const 200001))
      (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $at) (i32.add (i32.const 200000) (local.get $len))))
        (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 46)) (then (i32.store8 (local.get $at) (i32.const 0))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
      (i32.store (i32.const 4) (i32.const 0))
      (call $number (call $property (i32.const 200001) (i32.sub (local.get $len) (i32.const 1)) (i32.const 0) (i32.const 4)))
      (call $char (i32.const 32))
      (call $text (i32.load (i32.const 0)) (i32.load (i32.const 4)))
      (call $flush)
      (if (i32.eq (i32.load8_u (i32.const 200000)) (i32.const 63))
        (then (drop (call $set (local.get $which) (i32.const 0) (i32.const 0x7fffffff) (i32.const 160) (i32.const 0)))))
      (return (i32.const 0))))
    (call $act (i32.load8_u (local.get $at)) (local.get $which)))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
    (call $text (i32.const 80) (i32.const 4))
    (call $data (i32.const 2) (local.get 1) (local.get 2)))
  (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32)
    (call $text (i32.const 85) (i32.const 2))
    (call $data (i32.const 3) (local.get 1) (local.get 2)))
  (func (export "proxy_on_downstream_connection_close") (param i32 i32)
    (call $text (i32.const 88) (i32.const 9)) (call $number (local.get 1)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush))
  (func (export "proxy_on_upstream_connection_close") (param i32 i32)
    (call $text (i32.const 98) (i32.const 7)) (call $number (local.get 1)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush))
  (func (export "proxy_on_done") (param i32) (result i32)
    (call $text (i32.const 106) (i32.const 4)) (call $flush) (i32.const 1))
  (func (export "proxy_on_log") (param i32)
    (call $text (i32.const 111) (i32.const 3)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush))
  (func (export "proxy_on_delete") (param i32) (call $text (i32.const 115) (i32.const 6)) (call $flush))
  (func (export "proxy_on_tick") (param i32)
    (if (i32.eqz (global.get $last)) (then (return)))
    (if (call $effective (global.get $last)) (then (return)))
    (if (i32.eq (i32.load8_u (i32.const 33)) (i32.const 43)) (then
      (i32.store (i32.const 4) (i32.const 0))
      (if (call $buffer (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 4)) (then (return)))
      (if (i32.eqz (i32.load (i32.const 4))) (then (return)))))
    (global.set $last (i32.const 0))
    (call $text (i32.const 122) (i32.const 4)) (call $hold (i32.const 2)) (call $hold (i32.const 3)) (call $flush)
    (drop (call $act (i32.load8_u (i32.const 33)) (i32.const 2)))))
